"""Settings of the method: every number that the papers or their programs fix, with its source.

Sources: HybridGL (CVPR 2025, arXiv 2504.00356), GEM (CVPR 2024, arXiv 2312.00878), and the
behaviour of the released programs, whose deviations are the quirks Q1 to Q9 of docs/quirks.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum

from hybridgl.errors import HybridGLError

__all__ = [
    "PROPOSALS_PHRASECUT",
    "PROPOSALS_REFCOCO",
    "PROPOSALS_SHAPES",
    "FusionConfig",
    "FusionMode",
    "GemConfig",
    "GuidanceConfig",
    "MethodConfig",
    "Profile",
    "ProposalConfig",
    "ReferenceQuirks",
    "TextConfig",
]


class Profile(Enum):
    """Which reading of the method is run."""

    REFERENCE = "reference"
    """What the released program computes, every quirk included."""
    CORRECTED = "corrected"
    """What its authors can have meant: every quirk repaired."""


class FusionMode(Enum):
    """How the global and the local stream of a mask are combined (paper section 3.2)."""

    GLOBAL_TO_LOCAL = "G2L"
    LOCAL_TO_GLOBAL = "L2G"
    BOTH = "both"
    TOKEN_MASKING = "token_masking"
    ATTENTION_MASKING = "attn_masking"
    CROP = "crop"

    @classmethod
    def parse(cls, name: str) -> FusionMode:
        """Mode of a name; the published spelling ``G2L&L2G`` means ``both``.

        Raises:
            HybridGLError: no mode has this name.
        """
        if name == "G2L&L2G":
            return cls.BOTH
        try:
            return cls(name)
        except ValueError:
            names = ", ".join(mode.value for mode in cls)
            raise HybridGLError(f"Expected a fusion mode among {names}, got {name!r}.") from None

    @property
    def reads_global_view(self) -> bool:
        """Whether the global stream takes part."""
        return self in (self.GLOBAL_TO_LOCAL, self.LOCAL_TO_GLOBAL, self.BOTH)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceQuirks:
    """What the released program does that its authors cannot have meant; True reproduces it."""

    local_view_imagenet_unnormalised_fill: bool = True
    """Q1: local views use ImageNet statistics and CLIP's pixel mean, un-normalised, as filling."""
    global_view_imagenet_statistics: bool = True
    """Q2: global views are normalised with ImageNet's statistics instead of CLIP's."""
    attention_masking_skips_last_block: bool = True
    """Q3: mode ``attn_masking`` reads the class token one block before the last."""
    right_relation_never_matches: bool = True
    """Q4: no word makes the relation "right"."""
    top_k_shrinks_across_images: bool = True
    """Q5: an image with few proposals lowers the candidate counts of every later image."""
    vertical_priors_disabled: bool = True
    """Q6: the position words "up" and "down" do not weight the attention map."""
    crop_unnormalised_fill: bool = True
    """Q7: Global-Local CLIP fills crops with ImageNet's pixel mean, un-normalised."""
    images_without_proposals_skipped: bool = True
    """Q8: Global-Local CLIP leaves images without proposals out of both metrics."""
    overlapping_polygons_dropped: bool = True
    """Q9: pixels that two polygons of one annotation cover are not part of the ground truth."""

    @classmethod
    def of(cls, profile: Profile) -> ReferenceQuirks:
        """All quirks for ``reference``, none for ``corrected``."""
        on = profile is Profile.REFERENCE
        return cls(**{quirk.name: on for quirk in dataclasses.fields(cls)})


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalConfig:
    """Settings of SAM's automatic mask generator, named as there."""

    points_per_side: int = 8
    """Prompts along each side of the image."""
    pred_iou_thresh: float = 0.7
    """Least IoU, 0 to 1, that the mask decoder predicts for a mask."""
    stability_score_thresh: float = 0.7
    """Least IoU, 0 to 1, between a mask cut at a higher and at a lower threshold."""
    crop_n_layers: int = 0
    """Layers of image crops that are run besides the whole image."""
    crop_n_points_downscale_factor: int = 1
    """Divides the prompts along each side for each layer of crops."""
    min_mask_region_area: int = 800
    """Holes and islands below this area, in pixels, are filled or removed."""


PROPOSALS_REFCOCO = ProposalConfig()
"""RefCOCO, RefCOCO+, RefCOCOg and the user's own images, as released."""
PROPOSALS_PHRASECUT = ProposalConfig(
    points_per_side=64,
    pred_iou_thresh=0.86,
    stability_score_thresh=0.92,
    crop_n_layers=1,
    crop_n_points_downscale_factor=2,
    min_mask_region_area=100,
)
"""PhraseCut, as released."""
PROPOSALS_SHAPES = ProposalConfig(min_mask_region_area=100)
"""The shapes world: region area scaled to its small images, so that rings keep their holes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig:
    """Settings of the mask features."""

    mode: FusionMode = FusionMode.GLOBAL_TO_LOCAL
    """Which stream is fed into which."""
    masking_block: int = 9
    """First residual block, counted from 0, in which masks act."""
    stream_weight: float = 2.0
    """Weight of the stream that is added to the other one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Settings of the text features."""

    sentence_weight: float = 0.5
    """Share of the whole sentence; the noun phrase has the rest."""
    other_noun_prompt: str = "a photo of {}"
    """Prompt of the other noun phrases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GemConfig:
    """Settings of the GEM maps (GEM paper, section 3)."""

    depth: int = 7
    """``depth - 1`` last blocks carry the self-self attention stream."""
    iterations: int = 1
    """Self-self attention steps that sharpen the tokens before they select values."""
    resolution_factor: int = 2
    """Side of the input over the side that CLIP was trained on: 448 pixels for 224."""
    prompt: str = "a photo of a {}."
    """Prompt of the noun phrase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceConfig:
    """Settings of the spatial guidance (paper section 3.3)."""

    alpha: float = 0.6
    """Share of the coherence score in the final score; the relation score has the rest."""
    num_candidates: int = 3
    """K1: masks, best by their own score, among which one is picked."""
    num_context_masks: int = 6
    """K2: masks, best by the other nouns' score, that a relation is measured against."""
    outside_weight: float = 1.8
    """b: weight of the heat outside a mask; ``2 - b`` weighs the heat inside."""
    outside_weight_big: float = 1.95
    """b when the relation is "big"."""
    outside_weight_small: float = 1.5
    """b when the relation is "small"."""
    relationship: bool = True
    """Whether the relation score counts."""
    coherence: bool = True
    """Whether the coherence score counts; without it no attention map is computed."""
    position: bool = True
    """Whether position words weigh the attention map."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodConfig:
    """Everything that decides a pick, besides the weights."""

    quirks: ReferenceQuirks = field(default_factory=ReferenceQuirks)
    """Deviations of the released program that are reproduced."""
    proposals: ProposalConfig = PROPOSALS_REFCOCO
    """Mask generator."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """Mask features."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text features."""
    gem: GemConfig = field(default_factory=GemConfig)
    """Attention maps."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Final choice."""
