"""Compare the library with golden vectors: inputs, and what the published programs make of them.

A folder of vectors holds any of these files, found by their names:

* ``hybrid_*.npz``: an image, masks, their two views, their features in any fusion mode;
* ``gem_depth<d>_iter<i>.npz``: images, noun phrases, heat maps;
* ``text.npz``: texts, tokens, features;
* ``clip_tiny.npz``: the CLIP that the three above were made with;
* ``language.json``: parses, and what is read off them;
* ``guidance.json`` and ``guidance.npz``: features and masks, scores and picks;
* ``metrics.json``: pairs of masks, their oIoU and mIoU.

All are of the profile ``reference``. Exit status: 0 where everything agrees, 1 where a difference
is beyond its tolerance, 2 where the folder cannot be read.

Example:
    python scripts/check_golden.py tests/golden

Shapes: N masks, S phrases, L texts, P patches, E embedding width, R side of CLIP's input,
g patches along each side of GEM's input, H x W image pixels.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import spacy
import torch
from numpy.typing import NDArray
from PIL import Image
from spacy.tokens import Doc
from torch import Tensor

from hybridgl import gem, guidance, views
from hybridgl.config import FusionConfig, FusionMode, GemConfig, GuidanceConfig, ReferenceQuirks
from hybridgl.errors import UserError
from hybridgl.fusion import mask_features
from hybridgl.language import Position, Relation, parse_expression
from hybridgl.metrics import Overlap, mean_iou, overall_iou, overlap_counts
from hybridgl.models.clip_encoder import ClipEncoder

__all__ = ["Comparison", "FolderReport", "GoldenError", "compare_folder", "main"]

_TOLERANCE = 1e-4
"""Largest error of a feature, map or score, and of a metric in percent."""

_QUIRKS = ReferenceQuirks()

_VIEW_STEP = 16
"""The vectors hold every 16th row and column of a view."""

_MAP_STEP = 14
"""The vectors hold every 14th row and column of a heat map at the size of GEM's input."""

_LOGIT_SCALE = 100.0
_SENTENCE_WEIGHT = 0.5
"""How the scores of ``guidance.json`` come from the features of ``guidance.npz``."""

_MASKS_PER_CHUNK = 16

_CLIP = "clip_tiny.npz"

_Array = NDArray[Any]


class GoldenError(ValueError):
    """A folder of vectors that is missing, damaged or laid out otherwise."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of the report.

    Attributes:
        file: name of the file that holds the expected values.
        subject: what was compared.
        total: how many numbers, or cases that must match exactly.
        matches: cases that match; None where errors were measured.
        error: largest absolute error; infinite or NaN where none can be measured.
    """

    file: str
    subject: str
    total: int
    matches: int | None = None
    error: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether all cases match, or the error is within the tolerance."""
        if self.matches is not None:
            return self.matches == self.total
        return self.error <= _TOLERANCE

    @property
    def result(self) -> str:
        """The number of matches, or the largest error."""
        if self.matches is not None:
            return f"{self.matches} of {self.total} exact"
        return f"largest error {self.error:.1e} in {self.total}"


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What a folder gave.

    Attributes:
        comparisons: at least one.
        not_compared: a line for every file that was left out, and why.
    """

    comparisons: tuple[Comparison, ...]
    not_compared: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every comparison passed."""
        return all(comparison.passed for comparison in self.comparisons)

    def __str__(self) -> str:
        """An aligned table, then what was not compared."""
        cells = [
            (row.file, row.subject, "ok" if row.passed else "WRONG", row.result)
            for row in self.comparisons
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        return "\n".join([*lines, *(f"not compared: {line}" for line in self.not_compared)])


def compare_folder(folder: Path) -> FolderReport:
    """Compare every file that the library has a counterpart of.

    Args:
        folder: laid out as the module describes.

    Raises:
        GoldenError: no such folder, nothing in it to compare, or a file that cannot be used.
        UserError: CLIP weights that cannot be used.
    """
    if not folder.is_dir():
        raise GoldenError(f"Expected a folder of golden vectors at {folder}, found none.")
    clip = ClipEncoder.from_file(folder / _CLIP) if (folder / _CLIP).is_file() else None
    comparisons: list[Comparison] = []
    not_compared: list[str] = []
    for path in sorted(folder.iterdir()):
        compare = next((c for name, c in _COMPARES.items() if re.fullmatch(name, path.name)), None)
        if compare and (clip or compare not in _NEED_CLIP):
            comparisons += _run(compare, path, clip)
        elif compare:
            not_compared.append(f"{path.name} (the folder lacks its weights {_CLIP})")
        elif path.suffix in (".npz", ".json") and path.name not in (_CLIP, "guidance.npz"):
            not_compared.append(f"{path.name} (the library has no counterpart)")
    if not comparisons:
        raise GoldenError(
            f"Expected golden vectors in {folder}, found nothing to compare. Give a folder laid "
            f"out like tests/golden."
        )
    return FolderReport(tuple(comparisons), tuple(not_compared))


def compare_hybrid(path: Path, clip: ClipEncoder) -> Iterator[Comparison]:
    """Views and features of the masks of one image."""
    vectors = _read_npz(path)
    masks_NHW = torch.from_numpy(_unpack(vectors["masks"], vectors["mask_shape"]))
    inputs = _Inputs.of(vectors["image"], masks_NHW, clip)
    for name, views_N3RR in (("local", inputs.local_N3RR), ("global", inputs.global_N3RR)):
        yield _errors(
            path,
            f"{name} views",
            (views_N3RR.mean(dim=(2, 3)), vectors[f"{name}_mean"]),
            (views_N3RR[:, :, ::_VIEW_STEP, ::_VIEW_STEP], vectors[f"{name}_sample"]),
        )
    for key in vectors:
        if key.startswith("feat|"):
            _, mode, block = key.split("|")
            features_NE = inputs.features(
                clip, FusionConfig(mode=FusionMode.parse(mode), masking_block=int(block))
            )
            yield _errors(path, f"{mode} from block {block}", (features_NE, vectors[key]))


def compare_gem(path: Path, clip: ClipEncoder) -> Iterator[Comparison]:
    """Heat maps of images and noun phrases, at the size of GEM's input and of the image."""
    vectors = _read_npz(path)
    depth, iterations = map(int, re.findall(r"\d+", path.name))
    config = GemConfig(depth=depth, iterations=iterations)
    side = config.resolution_factor * clip.image_size
    texts_SE = clip.encode_texts([config.prompt.format(text) for text in vectors["texts"]])
    for key in vectors:
        if key.startswith("image_"):
            index = key.removeprefix("image_")
            image = Image.fromarray(vectors[key])
            patches_1PE = gem.patch_features(clip.visual, gem.gem_input(image, side)[None], config)
            low_Sgg = gem.low_resolution_maps(patches_1PE[0], texts_SE)
            input_SRR = gem.heat_map(low_Sgg, side, (side, side))
            image_SHW = gem.heat_map(low_Sgg, side, (image.height, image.width))
            yield _errors(
                path,
                f"heat maps of image {index}",
                (input_SRR[:, ::_MAP_STEP, ::_MAP_STEP], vectors[f"low_{index}"]),
                (image_SHW, vectors[f"map_{index}"]),
            )


def compare_text(path: Path, clip: ClipEncoder) -> Iterator[Comparison]:
    """Tokens and features of texts."""
    vectors = _read_npz(path)
    texts = [str(text) for text in vectors["texts"]]
    tokens_match = (clip.tokenize(texts).numpy() == vectors["tokens"]).all(axis=1)
    yield Comparison(path.name, "tokens", len(texts), int(tokens_match.sum()))
    yield _errors(path, "features", (clip.encode_texts(texts), vectors["features"]))


def compare_language(path: Path, _: ClipEncoder | None) -> Iterator[Comparison]:
    """What is read off parses."""
    vocabulary = spacy.blank("en").vocab
    cases = _read_json(path)
    matches = dict.fromkeys(
        ("noun_phrase", "head_noun", "other_noun_phrases", "other_nouns", "position", "relation"),
        0,
    )
    for case in cases:
        words = case["words"]
        spaces = [index + 1 < len(words) for index in range(len(words))]
        doc = Doc(vocabulary, words, spaces, heads=case["heads"], deps=case["deps"], pos=case["pos"])
        parsed = parse_expression(
            doc, right_relation_never_matches=_QUIRKS.right_relation_never_matches
        )
        read = {
            "noun_phrase": parsed.noun_phrase,
            "head_noun": parsed.head_noun,
            "other_noun_phrases": list(parsed.other_noun_phrases),
            "other_nouns": list(parsed.other_nouns),
            "position": parsed.position.value,
            "relation": parsed.relation.value,
        }
        for name in matches:
            matches[name] += read[name] == case[name]
    for name, count in matches.items():
        yield Comparison(path.name, name.replace("_", " "), len(cases), count)


def compare_guidance(path: Path, _: ClipEncoder | None) -> Iterator[Comparison]:
    """Scores and picks."""
    arrays = _read_npz(path.with_suffix(".npz"))
    cases = _read_json(path)
    chosen = [_choose(case, arrays) for case in cases]
    logits = [(own_N, arrays[f"{case['id']}/logits"].reshape(-1)) for (own_N, _), case in chosen]
    yield _errors(path, "logits")
