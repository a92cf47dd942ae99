"""Published scores that a run is shown beside, with where they were read.

All are secondary sources: the papers' own tables were not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["HYBRIDGL_MIOU", "HYBRIDGL_RERUN", "PublishedScore", "published_scores"]


@dataclass(frozen=True, slots=True)
class PublishedScore:
    """A score that somebody published.

    Attributes:
        what: method and setting.
        miou: in percent.
        oiou: in percent; None where it was not found.
        source: where it was read.
    """

    what: str
    miou: float
    oiou: float | None
    source: str


_SURVEY = (
    "secondary: survey 'Multimodal Referring Segmentation', Table 2; "
    "agrees with the SAM 3 paper (arXiv 2511.16719), Table 42"
)
_RERUN = "issue 1 of the released program's tracker, RefCOCOg val (umd), G2L"

HYBRIDGL_MIOU: Mapping[tuple[str, str, str], float] = {
    ("refcoco", "unc", "val"): 49.48,
    ("refcoco", "unc", "testA"): 53.37,
    ("refcoco", "unc", "testB"): 45.19,
    ("refcoco+", "unc", "val"): 43.40,
    ("refcoco+", "unc", "testA"): 49.13,
    ("refcoco+", "unc", "testB"): 37.17,
    ("refcocog", "umd", "val"): 51.25,
    ("refcocog", "umd", "test"): 51.59,
}
"""HybridGL with CLIP ViT-B/16 and SAM ViT-H by (dataset, split_by, split), in percent."""

HYBRIDGL_RERUN = (
    PublishedScore("released program, re-run, pure", 46.66, 37.14, _RERUN),
    PublishedScore("released program, re-run, guided", 46.04, 35.48, _RERUN),
)
"""An independent run of the released program: about 5 mIoU below the paper."""


def published_scores(dataset: str, split_by: str, split: str) -> list[PublishedScore]:
    """What is published for HybridGL on a split; empty where nothing is."""
    key = (dataset, split_by, split)
    scores = []
    if key in HYBRIDGL_MIOU:
        scores.append(PublishedScore("HybridGL, paper", HYBRIDGL_MIOU[key], None, _SURVEY))
    if key == ("refcocog", "umd", "val"):
        scores.extend(HYBRIDGL_RERUN)
    return scores
