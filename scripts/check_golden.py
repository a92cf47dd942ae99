"""Compare the library with golden vectors: inputs, and what the published programs make of them.

A folder of vectors holds any of these files, found by their names:

* ``hybrid_*.npz``: an image, masks, their two views, their features in any fusion mode;
* ``gem_depth<d>_iter<i>.npz``: images, noun phrases, heat maps;
* ``text.npz``: texts, tokens, features;
* ``clip_tiny.npz``: the CLIP that the three above were made with;
* ``language.json``: parses, and what is read off them;
* ``guidance.json`` and ``guidance.npz``: masks and features, scores and picks;
* ``metrics.json``: pairs of masks, their oIoU and mIoU.

All are of the profile ``reference``. Exit status: 0 where everything agrees, 1 where a difference
is beyond its tolerance, 2 where the folder cannot be read.

Example:
    python -m scripts.check_golden tests/golden

Shapes: N masks, S phrases, L texts, E embedding width, H x W image pixels.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import spacy
import torch
from numpy.typing import NDArray
from PIL import Image
from spacy.tokens import Doc

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


class GoldenError(ValueError):
    """A folder of vectors that is missing, damaged or laid out otherwise."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of the report.

    Attributes:
        file: name of the file that holds the expected values.
        subject: what was compared.
        total: how many values, or cases that must match exactly.
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
        """Whether all cases match, or the error is within tolerance."""
        if self.matches is not None:
            return self.matches == self.total
        return self.error <= _TOLERANCE

    @property
    def result(self) -> str:
        """The number of matches, or the largest error."""
        if self.matches is not None:
            return f"{self.matches} of {self.total} exact"
        return f"error {self.error:.1e}"


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What a folder gave.

    Attributes:
        comparisons: at least one.
        not_compared: a line for every file that was left out, and why.
    """

    comparisons: tuple[Comparison, ...]
    not_compared: tuple[str, ...]

    def table(self) -> str:
        """All of it as aligned lines."""
        cells = [
            (row.file, row.subject, str(row.total), row.result, "ok" if row.passed else "WRONG")
            for row in self.comparisons
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            f"{file:<{widths[0]}}  {subject:<{widths[1]}}  {total:>{widths[2]}} values  "
            f"{result:<{widths[3]}}  {verdict}"
            for file, subject, total, result, verdict in cells
        ]
        return "\n".join(lines + [f"not compared: {line}" for line in self.not_compared])


class _Fields(dict[str, Any]):
    """Arrays or JSON values of a file by name; a name that it lacks is a ``GoldenError``."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise GoldenError(f"Expected {name!r} in {self.path}, found no such entry. Copy it again.")


def compare_folder(folder: Path) -> FolderReport:
    """Compare every file that the library has a counterpart of.

    Args:
        folder: laid out as the module describes.

    Raises:
        GoldenError: no such folder, nothing in it to compare, or a damaged file.
        UserError: damaged CLIP weights.
    """
    if not folder.is_dir():
        raise GoldenError(f"Expected a folder of golden vectors at {folder}, found none.")
    has_clip = (folder / _CLIP).is_file()
    clip = ClipEncoder.from_file(folder / _CLIP) if has_clip else None
    comparisons: list[Comparison] = []
    not_compared: list[str] = []
    for path in sorted(folder.iterdir()):
        check, check_clip = _find(_CHECKS, path.name), _find(_CHECKS_WITH_CLIP, path.name)
        if check:
            comparisons += check(path)
        elif check_clip and clip:
            comparisons += check_clip(path, clip)
        elif check_clip:
            not_compared.append(f"{path.name}, as the weights {_CLIP} are not there")
        elif path.suffix in (".npz", ".json") and path.name not in (_CLIP, "guidance.npz"):
            not_compared.append(f"{path.name}, as the library has no counterpart")
    if not comparisons:
        raise GoldenError(f"Expected golden vectors in {folder}, found nothing to compare.")
    return FolderReport(tuple(comparisons), tuple(not_compared))


def compare_hybrid(path: Path, clip: ClipEncoder) -> Iterator[Comparison]:
    """Views and features of every mask of one image."""
    vectors = _read_npz(path)
    image_HW3 = vectors["image"]
    masks_NHW = torch.from_numpy(_unpack(path, vectors["masks"], vectors["mask_shape"]))
    locals_N3RR, globals_N3RR, gates_NP = (
        torch.cat(parts) for parts in zip(*_inputs(image_HW3, masks_NHW, clip), strict=True)
    )
    for name, views_N3RR in (("local", locals_N3RR), ("global", globals_N3RR)):
        yield _errors(
            path,
            f"{name} views",
            (views_N3RR.mean(dim=(2, 3)), vectors[f"{name}_mean"]),
            (views_N3RR[:, :, ::_VIEW_STEP, ::_VIEW_STEP], vectors[f"{name}_sample"]),
        )
    for key in vectors:
        if not key.startswith("feat|"):
            continue
        _, mode, block = key.split("|")
        features_NE = mask_features(
            clip.visual,
            locals_N3RR,
            globals_N3RR,
            gates_NP,
            FusionConfig(mode=FusionMode.parse(mode), masking_block=int(block)),
            attention_masking_skips_last_block=_QUIRKS.attention_masking_skips_last_block,
        )
        yield _errors(path, f"{mode}, masks from block {block}", (features_NE, vectors[key]))


def compare_gem(path: Path, clip: ClipEncoder) -> Iterator[Comparison]:
    """Heat maps of every image and noun phrase, at two sizes."""
    vectors = _read_npz(path)
    depth, iterations = map(int, re.findall(r"\d+", path.name))
    config = GemConfig(depth=depth, iterations=iterations)
    side = config.resolution_factor * clip.image_size
    texts_SE = clip.encode_texts([config.prompt.format(text) for text in vectors["texts"]])
    for key in vectors:
        if not key.startswith("image_"):
            continue
        index = key.removeprefix("image_")
        image = Image.fromarray(vectors[key])
        patches_BPE = gem.patch_features(clip.visual, gem.gem_input(image, side)[None], config)
        low_Sgg = gem.low_resolution_maps(patches_BPE[0], texts_SE)
        at_input_SRR = gem.heat_map(low_Sgg, side, (side, side))
        yield _errors(
            path,
            f"heat maps of image {index}",
            (at_input_SRR[:, ::_MAP_STEP, ::_MAP_STEP], vectors[f"low_{index}"]),
            (gem.heat_map(low_Sgg, side, (image.height, image.width)), vectors[f"map_{index}"]),
        )


def compare_text(path: Path, clip: ClipEncoder) -> Iterator[Comparison]:
    """Features of texts."""
    vectors = _read_npz(path)
    features_LE = clip.encode_texts([str(text) for text in vectors["texts"]])
    yield _errors(path, "text features", (features_LE, vectors["features"]))


def compare_language(path: Path) -> Iterator[Comparison]:
    """What is read off every parse."""
    vocabulary = spacy.blank("en").vocab
    cases = _read_json(path)
    found = []
    for case in cases:
        doc = Doc(
            vocabulary,
            words=case["words"],
            heads=case["heads"],
            deps=case["deps"],
            pos=case["pos"],
            spaces=[True] * (len(case["words"]) - 1) + [False] * bool(case["words"]),
        )
        parsed = parse_expression(
            doc, right_relation_never_matches=_QUIRKS.right_relation_never_matches
        )
        found.append(
            {
                "noun_phrase": parsed.noun_phrase,
                "head_noun": parsed.head_noun,
                "other_noun_phrases": list(parsed.other_noun_phrases),
                "other_nouns": list(parsed.other_nouns),
                "position": parsed.position.value,
                "relation": parsed.relation.value,
            }
        )
    for name in found[0] if found else ():
        matches = sum(got[name] == case[name] for got, case in zip(found, cases, strict=True))
        yield Comparison(path.name, name.replace("_", " "), len(cases), matches)


def compare_guidance(path: Path) -> Iterator[Comparison]:
    """Scores and picks of every case."""
    cases = _read_json(path)
    arrays = _read_npz(path.with_suffix(".npz"))
    subjects = ("pure pick", "candidates", "pick", "logits", "relation", "coherence", "final")
    exact: dict[str, list[bool]] = {subject: [] for subject in subjects[:3]}
    pairs: dict[str, list[_Pair]] = {subject: [] for subject in subjects[3:]}
    for case in cases:
        own_N, choice = _choice(case, arrays, path)
        exact["pure pick"].append(choice.pick_pure == case["pick_hybrid"])
        exact["candidates"].append(choice.candidates_K.tolist() == case["top"])
        exact["pick"].append(choice.pick == case["pick_final"])
        pairs["logits"].append((own_N, arrays[f"{case['id']}/logits"].reshape(-1)))
        pairs["relation"].append((choice.relation_K, case["relation_scores"]))
        pairs["coherence"].append((choice.coherence_N, case["coherence"]))
        pairs["final"].append((choice.final_K, case["final"]))
    for subject, matches in exact.items():
        yield Comparison(path.name, subject, len(matches), sum(matches))
    for subject, compared in pairs.items():
        yield _errors(path, f"{subject} scores", *compared)


def compare_metrics(path: Path) -> Iterator[Comparison]:
    """Both metrics over all pairs of masks."""
    vectors = _read_json(path)
    overlaps = []
    for row in vectors["rows"]:
        prediction_1HW, truth_1HW = (
            _unpack(path, np.array([row[name]], dtype=np.uint8), (1, *row["shape"]))
            for name in ("pred", "target")
        )
        intersections, unions = overlap_counts(prediction_1HW, truth_1HW)
        overlaps.append(Overlap(int(intersections[0, 0]), int(unions[0, 0])))
    for name, metric in (("oIoU", overall_iou), ("mIoU", mean_iou)):
        error = abs(metric(overlaps) - vectors[name])
        yield Comparison(path.name, f"{name} in percent", len(overlaps), error=error)


_CHECKS: dict[str, Callable[[Path], Iterator[Comparison]]] = {
    r"language\.json": compare_language,
    r"guidance\.json": compare_guidance,
    r"metrics\.json": compare_metrics,
}
_CHECKS_WITH_CLIP: dict[str, Callable[[Path, ClipEncoder], Iterator[Comparison]]] = {
    r"hybrid_.+\.npz": compare_hybrid,
    r"gem_depth\d+_iter\d+\.npz": compare_gem,
    r"text\.npz": compare_text,
}

_Check = TypeVar("_Check")
_Pair = tuple[Tensor | NDArray[Any], Any]
