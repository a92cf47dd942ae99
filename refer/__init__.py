"""Referring-expression datasets: REFER files, PhraseCut and custom datasets, with their masks.

Start at ``load_refer``; README.md shows the expected folders and where the data comes from.
"""

from __future__ import annotations

from refer.coco import load_custom
from refer.dataset import Annotation, Id, ImageErrors, ImageInfo, Ref, ReferSplit, Sentence
from refer.image_errors import describe_image_errors, find_image_errors
from refer.phrasecut import load_phrasecut
from refer.refer import load_refer, load_refer_splits
from refer.segmentation import MaskRule
from refer.splits import DATASETS, SPLITS, ExpectedCounts, expected_counts

__all__ = [
    "DATASETS",
    "SPLITS",
    "Annotation",
    "ExpectedCounts",
    "Id",
    "ImageErrors",
    "ImageInfo",
    "MaskRule",
    "Ref",
    "ReferSplit",
    "Sentence",
    "describe_image_errors",
    "expected_counts",
    "find_image_errors",
    "load_custom",
    "load_phrasecut",
    "load_refer",
    "load_refer_splits",
]
