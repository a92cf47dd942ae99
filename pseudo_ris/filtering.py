"""Which captions of a mask are used: those that single its object out.

Source: Pseudo-RIS section 3.3 and the loader of its program; quirks P28 and P29 of docs/quirks.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from pseudo_ris.config import PseudoQuirks

__all__ = ["CaptionFilter", "Pool", "caption_pool"]

CAPTIONS_PER_CROP = 11
"""One by beam search and one of each of ten truncations, in this order, for every kind of crop."""

_BEAM, _BEAM_AS_RELEASED = 0, 1


class CaptionFilter(Enum):
    """Rule by which captions are kept."""

    DISTINCTIVE = "distinctive"
    """Those of a distinctiveness above the threshold; of a single mask, the better half."""
    ALL = "all"
    """All of them."""
    BEAM = "beam"
    """Those of beam search."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Captions of a mask that are kept.

    Attributes:
        indices: of the captions; of a single mask by falling score.
        passed: whether they passed the filter: False where all stand in for none.
    """

    indices: tuple[int, ...]
    passed: bool = True


def caption_pool(
    scores: Sequence[float],
    rule: CaptionFilter,
    threshold: float,
    quirks: PseudoQuirks,
    *,
    single_mask: bool,
) -> Pool:
    """Choose the captions of a mask that are used.

    Args:
        scores: distinctiveness of every caption.
        rule: of the filter.
        threshold: distinctiveness that a kept caption exceeds.
        quirks: P28: where none is kept, all are; P29: the first sample passes for the beam's.
        single_mask: whether the image has no other mask, so that scores have another scale.

    Example:
        >>> rule, quirks = CaptionFilter.DISTINCTIVE, PseudoQuirks()
        >>> caption_pool([1.5, 0.5], rule, 1, quirks, single_mask=False).indices
        (0,)
    """
    everything = tuple(range(len(scores)))
    if rule is CaptionFilter.ALL:
        return Pool(everything)
    if rule is CaptionFilter.BEAM:
        wanted = _BEAM_AS_RELEASED if quirks.beam_is_the_second else _BEAM
        return Pool(tuple(i for i in everything if i % CAPTIONS_PER_CROP == wanted))
    if single_mask:
        best = sorted(everything, key=lambda index: -scores[index])
        return Pool(tuple(best[: len(scores) // 2]))
    kept = tuple(index for index in everything if scores[index] > threshold)
    if not kept and quirks.noise_without_distinct:
        return Pool(everything, passed=False)
    return Pool(kept, passed=bool(kept))
