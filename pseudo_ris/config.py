"""Deviations of the released Pseudo-RIS, each with its name, as docs/quirks.md lists them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hybridgl.config import Profile

__all__ = ["PseudoQuirks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PseudoQuirks:
    """What the released program does that its authors cannot have meant; True reproduces it."""

    matching_by_overlap: bool = True
    """P3: CutLER's masks take the SAM mask of the largest overlap, also of none; not of the largest
    IoU."""
    sam_masks_repeat: bool = True
    """P4: several of CutLER's masks may take the same SAM mask."""
    crops_unnormalised_fill: bool = True
    """P8: crops are filled with CLIP's pixel mean, un-normalised."""
    boxes_end_before_last_pixel: bool = True
    """P9: boxes lose their last row and column."""
    crops_without_antialias: bool = True
    """P10: crops are resized bilinearly without antialiasing, not as CoCa was trained."""
    beams_add_logits: bool = True
    """P12: a beam's score is a sum of logits, not of log-probabilities."""
    beam_groups_are_copies: bool = True
    """P13: six beams in three groups that are copies of each other: two beams."""
    many_masks_are_not_distinct: bool = True
    """P15: images of more than 30 masks have plain sampling; otherwise the 30 nearest count."""
    end_keeps_its_probability: bool = True
    """P16: the end's probability is put back without rescaling the others'."""
    unlike_masks_attract: bool = True
    """P17: masks of negative similarity add their words instead of counting for nothing."""
    token_zero_ends: bool = True
    """P20: token 0, "!", ends a caption, which gets a tail of "!"."""
    nouns_of_first_child_only: bool = True
    """P21: a head outside of noun chunks gives the whole caption, unless its first child lies in
    one."""
    negative_scores_multiply: bool = True
    """P24: two negative cosines make a high product, and a negative maximum turns the order."""
    noise_without_distinct: bool = True
    """P28: of a mask without any distinctive caption, all captions are used."""
    beam_is_the_second: bool = True
    """P29: the loader's beam mode takes the first sampled caption for the beam's."""

    @classmethod
    def of(cls, profile: Profile) -> PseudoQuirks:
        """Return all quirks for ``reference``, none for ``corrected``."""
        on = profile is Profile.REFERENCE
        return cls(**{quirk.name: on for quirk in dataclasses.fields(cls)})
