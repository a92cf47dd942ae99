"""Compare the library with golden vectors: inputs, and what the published programs make of them.

A folder of vectors holds any of these files, found by their names:

* ``hybrid_*.npz``: an image, masks, their two views, their features in any fusion mode;
* ``gem_depth<d>_iter<i>.npz``: images, noun phrases, attention maps;
* ``text.npz``: texts, tokens, features;
* ``clip_tiny.npz``: the CLIP that the three above were made with;
* ``global_local.npz``: images, masks, boxes, crops; their features in Global-Local CLIP, of the
  vision towers ``clip_tiny_vit32.npz`` and ``clip_tiny_rn.npz``;
* ``language.json``: parses, and what is read off them;
* ``guidance.json`` and ``guidance.npz``: features and masks, scores and predictions;
* ``metrics.json``: pairs of masks, their oIoU and mIoU.

Or it holds those of Pseudo-RIS, which ``golden_pseudo.py`` describes.

All are of the profile ``reference``. What is computed with tensors is computed on the device that
is asked for, without TF32. Exit status: 0 where everything agrees, 1 where a difference is beyond
its tolerance, 2 where the folder cannot be read.

Example:
    python -m scripts.check_golden tests/golden
    python -m scripts.check_golden tests/golden --device cuda

Shapes: N masks, S phrases, L texts, P patches, E embedding width, R side of CLIP's input,
g patches along each side of GEM's input, H x W image pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hybridgl import gem, guidance, views
from hybridgl.config import FusionConfig, FusionMode, GemConfig, GuidanceConfig, ReferenceQuirks
from hybridgl.devices import select_device, set_tf32
from hybridgl.errors import DataError, HybridGLError
from hybridgl.fusion import mask_features
from hybridgl.language import Position, Relation, parse_expression
from hybridgl.methods import global_local
from hybridgl.metrics import PROTOCOLS, intersection_and_union, scores
from hybridgl.models.clip import ClipEncoder
from scripts.golden import (
    TOLERANCE,
    Comparison,
    FolderReport,
    errors,
    read_json,
    read_npz,
    unpack,
)
from scripts.golden_pseudo import compare_pseudo, is_pseudo

__all__ = ["compare_folder", "main"]

_TOLERANCES = {"cpu": TOLERANCE, "cuda": 1e-3}
"""Largest error of a feature, map or score, and of a metric in percent, by kind of device."""

_CPU = torch.device("cpu")

_QUIRKS = ReferenceQuirks()

_VIEW_STEP = 16
"""The vectors hold every 16th row and column of a view."""

_MAP_STEP = 14
"""The vectors hold every 14th row and column of an attention map at the size of GEM's input."""

_CROP_SIDE = 224
"""Input side of both vision towers of ``global_local.npz``."""

_LOGIT_SCALE = 100.0
_SENTENCE_WEIGHT = 0.5
"""How the scores of ``guidance.json`` come from the features of ``guidance.npz``."""

_MASKS_PER_CHUNK = 16

_UNUSABLE = (
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)
"""What reading or comparing a damaged file raises."""

_CLIP = "clip_tiny.npz"

_TOWERS = {"vit": "clip_tiny_vit32.npz", "rn": "clip_tiny_rn.npz"}
"""Vision towers of ``global_local.npz``; the texts' tower and all else is that of ``_CLIP``."""

_INPUTS = (_CLIP, "guidance.npz", *_TOWERS.values())
"""Files that are compared through others."""

_Array = NDArray[Any]


def compare_folder(folder: Path, device: torch.device = _CPU) -> FolderReport:
    """Compare every file that the library has a counterpart of.

    Args:
        folder: laid out as the module describes.
        device: where tensors are computed.

    Raises:
        DataError: no such folder, nothing in it to compare, or a file that cannot be used.
        HybridGLError: CLIP weights that cannot be used.
    """
    if not folder.is_dir():
        raise DataError(
            f"Expected a folder of golden vectors at {folder}, got no folder; check the path."
        )
    set_tf32(enabled=False)
    report = _pseudo_report if is_pseudo(folder) else _report
    return report(folder, device)


def _report(folder: Path, device: torch.device) -> FolderReport:
    """Compare the vectors of HybridGL and Global-Local CLIP."""
    clip = None
    if (folder / _CLIP).is_file():
        clip = ClipEncoder.from_file(folder / _CLIP, device=device)
    comparisons: list[Comparison] = []
    not_compared: list[str] = []
    for path in sorted(folder.iterdir()):
        compare = next((c for name, c in _COMPARES.items() if re.fullmatch(name, path.name)), None)
        if compare is compare_language and find_spec("spacy") is None:
            not_compared.append(f"{path.name} (spaCy is not installed)")
        elif compare and (clip or compare not in _NEED_CLIP):
            comparisons += _run(compare, path, clip, device)
        elif compare:
            not_compared.append(f"{path.name} (the folder lacks its weights {_CLIP})")
        elif path.suffix in (".npz", ".json") and path.name not in _INPUTS:
            not_compared.append(f"{path.name} (the library has no counterpart)")
    if (folder / "global_local.npz").is_file():
        not_compared += [
            f"features in global_local.npz of {name} (the folder lacks it or {_CLIP})"
            for name in _TOWERS.values()
            if not (clip and (folder / name).is_file())
        ]
    if not comparisons:
        raise DataError(
            f"Expected golden vectors in {folder}, got nothing to compare; give a folder laid out "
            f"like tests/golden."
        )
    tolerance = _TOLERANCES[device.type]
    return FolderReport(
        tuple(dataclasses.replace(row, tolerance=tolerance) for row in comparisons),
        tuple(not_compared),
    )


def _pseudo_report(folder: Path, device: torch.device) -> FolderReport:
    """Compare the vectors of Pseudo-RIS."""
    try:
        return compare_pseudo(folder, device)
    except _UNUSABLE as error:
        raise _unusable(folder, error) from error


def compare_hybrid(path: Path, clip: ClipEncoder, device: torch.device) -> Iterator[Comparison]:
    """Compare views and features of the masks of one image."""
    vectors = read_npz(path)
    masks_NHW = torch.from_numpy(unpack(vectors["masks"], vectors["mask_shape"].tolist()))
    masks_NHW = masks_NHW.to(device)
    inputs = _Inputs.of(vectors["image"], masks_NHW, clip)
    for name, views_N3RR in (("local", inputs.local_N3RR), ("global", inputs.global_N3RR)):
        yield errors(
            path,
            f"{name} views",
            (views_N3RR.mean(dim=(2, 3)), vectors[f"{name}_mean"]),
            (views_N3RR[:, :, ::_VIEW_STEP, ::_VIEW_STEP], vectors[f"{name}_sample"]),
        )
    for key in vectors:
        if key.startswith("feat|"):
            _, mode, block = key.split("|")
            features_NE = inputs.features(
                clip, FusionConfig(fusion_mode=FusionMode.parse(mode), masking_block=int(block))
            )
            yield errors(path, f"{mode} from block {block}", (features_NE, vectors[key]))


def compare_gem(path: Path, clip: ClipEncoder, device: torch.device) -> Iterator[Comparison]:
    """Compare attention maps of images at the size of GEM's input and of the image."""
    vectors = read_npz(path)
    depth, iterations = map(int, re.findall(r"\d+", path.name))
    config = GemConfig(depth=depth, iterations=iterations)
    side = config.resolution_factor * clip.image_size
    texts_SE = clip.encode_texts([config.prompt.format(text) for text in vectors["texts"]])
    for key in vectors:
        if key.startswith("image_"):
            index = key.removeprefix("image_")
            image = Image.fromarray(vectors[key])
            input_13RR = gem.gem_input(image, side)[None].to(device)
            patches_1PE = gem.patch_features(clip.visual, input_13RR, config)
            sim_Sgg = gem.patch_similarity(patches_1PE[0], texts_SE)
            input_SRR = gem.attention_map(sim_Sgg, side, (side, side))
            image_SHW = gem.attention_map(sim_Sgg, side, (image.height, image.width))
            yield errors(
                path,
                f"attention maps of image {index}",
                (input_SRR[:, ::_MAP_STEP, ::_MAP_STEP], vectors[f"low_{index}"]),
                (image_SHW, vectors[f"map_{index}"]),
            )


def compare_text(path: Path, clip: ClipEncoder, device: torch.device) -> Iterator[Comparison]:
    """Compare tokens and features of texts."""
    vectors = read_npz(path)
    texts = [str(text) for text in vectors["texts"]]
    pairs = zip(clip.tokenize(texts), vectors["tokens"], strict=True)
    matches = sum(np.array_equal(*pair) for pair in pairs)
    yield Comparison(path.name, "tokens", len(texts), matches)
    yield errors(path, "features", (clip.encode_texts(texts), vectors["features"]))


def compare_language(
    path: Path, _: ClipEncoder | None, device: torch.device
) -> Iterator[Comparison]:
    """Compare what is read off parses."""
    import spacy
    from spacy.tokens import Doc

    vocabulary = spacy.blank("en").vocab
    cases = read_json(path, list)
    matches = dict.fromkeys(
        ("noun_phrase", "head_noun", "other_noun_phrases", "other_nouns", "position", "relation"),
        0,
    )
    for case in cases:
        words = case["words"]
        spaces = [index + 1 < len(words) for index in range(len(words))]
        parse = {name: case[name] for name in ("heads", "deps", "pos")}
        doc = Doc(vocabulary, words, spaces, **parse)
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


def compare_guidance(
    path: Path, _: ClipEncoder | None, device: torch.device
) -> Iterator[Comparison]:
    """Compare scores and predictions."""
    arrays = read_npz(path.with_suffix(".npz"))
    cases = read_json(path, list)
    exact: dict[str, list[bool]] = {}
    scores: dict[str, list[tuple[_Array, Any]]] = {}
    for case in cases:
        similarity_N, choice = _choose(case, arrays, device)
        for subject, is_equal in (
            ("features", choice.features == case["pick_hybrid"]),
            ("candidates", choice.candidates_K.tolist() == case["top"]),
            ("guided", choice.guided == case["pick_final"]),
        ):
            exact.setdefault(subject, []).append(is_equal)
        for subject, pair in (
            ("logits", (similarity_N, arrays[f"{case['id']}/logits"].reshape(-1))),
            ("relation", (choice.relation_K, case["relation_scores"])),
            ("coherence", (choice.coherence_N, case["coherence"])),
            ("final", (choice.final_K, case["final"])),
        ):
            scores.setdefault(subject, []).append(pair)
    for subject, matches in exact.items():
        yield Comparison(path.name, subject, len(matches), sum(matches))
    for subject, pairs in scores.items():
        yield errors(path, subject, *pairs)


def compare_metrics(
    path: Path, _: ClipEncoder | None, device: torch.device
) -> Iterator[Comparison]:
    """Compare both metrics over all pairs of masks."""
    vectors = read_json(path, dict)
    counts = []
    for row in vectors["rows"]:
        prediction_1HW, gt_mask_1HW = (
            unpack(np.array([row[name]], dtype=np.uint8), (1, *row["shape"]))
            for name in ("pred", "target")
        )
        counts.append(
            [array.item() for array in intersection_and_union(prediction_1HW, gt_mask_1HW)]
        )
    intersections, unions = np.array(counts).T
    computed = scores(intersections, unions, PROTOCOLS["zero-shot"])
    for name in ("oIoU", "mIoU"):
        yield errors(path, f"{name} of {len(counts)} pairs", (computed[name], vectors[name]))


def compare_global_local(
    path: Path, _: ClipEncoder | None, device: torch.device
) -> Iterator[Comparison]:
    """Compare boxes, crops and both features of Global-Local CLIP."""
    vectors = read_npz(path)
    towers = {
        name: _with_vision_tower(path.parent, file, device)
        for name, file in _TOWERS.items()
        if (path.parent / file).is_file() and (path.parent / _CLIP).is_file()
    }
    for key in sorted({name.partition("|")[0] for name in vectors}):
        count, *hw = vectors[f"{key}|mask_shape"].tolist()
        masks_NHW = torch.from_numpy(unpack(vectors[f"{key}|masks"], (count, *hw))).to(device)
        boxes_N4 = global_local.mask_boxes(masks_NHW)
        pairs = zip(boxes_N4.cpu().numpy(), vectors[f"{key}|boxes_xyxy"], strict=True)
        matches = sum(np.array_equal(*pair) for pair in pairs)
        yield Comparison(path.name, f"boxes of image {key}", count, matches)
        image = Image.fromarray(vectors[f"{key}|image"])
        scaled_13hw = global_local.resized_image(image)[None].to(device)
        crops_N3RR = global_local.crop_views(
            views.resize(scaled_13hw, (hw[0], hw[1]))[0],
            masks_NHW,
            _CROP_SIDE,
            unnormalised_fill=_QUIRKS.crop_unnormalised_fill,
        )
        sample = crops_N3RR[:, :, ::_VIEW_STEP, ::_VIEW_STEP]
        yield errors(path, f"crops of image {key}", (sample, vectors[f"{key}|crop_sample"]))
        image_13RR = views.resize(scaled_13hw, (_CROP_SIDE, _CROP_SIDE))
        for name, clip in towers.items():
            coverage_NP = views.patch_coverage(masks_NHW, clip.grid)
            with torch.inference_mode():
                global_NE = global_local.global_features(clip, image_13RR, coverage_NP, 9)
                crop_NE = global_local.crop_features(clip, crops_N3RR)
            for feature, computed_NE in (("mask", global_NE), ("crop", crop_NE)):
                expected = vectors[f"{key}|{name}|{feature}_features"]
                subject = f"{name} {feature} features of image {key}"
                yield errors(path, subject, (computed_NE, expected))


def _with_vision_tower(folder: Path, name: str, device: torch.device) -> ClipEncoder:
    """Load the CLIP of the folder with another vision tower."""
    state = {key: value for key, value in read_npz(folder / _CLIP).items() if "visual." not in key}
    state |= {f"visual.{key}": value for key, value in read_npz(folder / name).items()}
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    return ClipEncoder(tensors, device)


_Compare = Callable[[Path, Any, torch.device], Iterator[Comparison]]

_COMPARES: Mapping[str, _Compare] = {
    r"hybrid_.+\.npz": compare_hybrid,
    r"gem_depth\d+_iter\d+\.npz": compare_gem,
    r"text\.npz": compare_text,
    r"language\.json": compare_language,
    r"guidance\.json": compare_guidance,
    r"metrics\.json": compare_metrics,
    r"global_local\.npz": compare_global_local,
}
"""What compares a file, by the pattern of its name."""

_NEED_CLIP = (compare_hybrid, compare_gem, compare_text)


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """What ``mask_features`` reads, for all masks of one image.

    Attributes:
        local_N3RR: local views.
        global_N3RR: global views.
        coverage_NP: share of every mask in every patch.
    """

    local_N3RR: Tensor
    global_N3RR: Tensor
    coverage_NP: Tensor

    @classmethod
    def of(cls, image_HW3: _Array, masks_NHW: Tensor, clip: ClipEncoder) -> _Inputs:
        """Make all in chunks: a view is at the size of the image before it shrinks."""
        image_3HW, blurred_3HW = (
            torch.from_numpy(pixels_HW3).permute(2, 0, 1).to(masks_NHW.device)
            for pixels_HW3 in (image_HW3, views.blur_background(image_HW3))
        )
        side = clip.image_size
        chunks = masks_NHW.split(_MASKS_PER_CHUNK)
        return cls(
            torch.cat([views.local_views(image_3HW, m, side, _QUIRKS) for m in chunks]),
            torch.cat(
                [views.global_views(image_3HW, blurred_3HW, m, side, _QUIRKS) for m in chunks]
            ),
            torch.cat([views.patch_coverage(m, clip.grid) for m in chunks]),
        )

    def features(self, clip: ClipEncoder, config: FusionConfig) -> Tensor:
        """Compute mask features, (N, E)."""
        skips = _QUIRKS.attention_masking_skips_last_block
        chunks = zip(
            self.local_N3RR.split(_MASKS_PER_CHUNK),
            self.global_N3RR.split(_MASKS_PER_CHUNK),
            self.coverage_NP.split(_MASKS_PER_CHUNK),
            strict=True,
        )
        return torch.cat(
            [
                mask_features(clip.visual, *chunk, config, attention_masking_skips_last_block=skips)
                for chunk in chunks
            ]
        )


def _choose(
    case: Mapping[str, Any], arrays: Mapping[str, _Array], device: torch.device
) -> tuple[_Array, guidance.Choice]:
    """Compute scores of every mask, (N,), and the choice of one case."""
    sentence, phrase, others, features, attention_HW = (
        torch.from_numpy(arrays[f"{case['id']}/{name}"]).to(device)
        for name in ("sent", "np", "others", "feats", "heat")
    )
    hw = (case["height"], case["width"])
    masks_NHW = unpack(arrays[f"{case['id']}/masks"], (case["n"], *hw))
    position, relation = Position(case["position"]), Relation(case["relation"])
    text_1E = _SENTENCE_WEIGHT * sentence + (1 - _SENTENCE_WEIGHT) * phrase
    similarity_N = _scores(features, text_1E)
    other_noun_similarity_N = (
        _scores(features, others.mean(dim=0, keepdim=True)) if len(others) else None
    )
    prior = guidance.position_prior(
        position, hw, vertical_priors_disabled=_QUIRKS.vertical_priors_disabled
    )
    undefined_win = _QUIRKS.undefined_scores_win
    coherence_1N = guidance.coherence_scores(
        guidance.weighted_attention(
            attention_HW[None], [prior], undefined_scores_win=undefined_win
        ),
        torch.from_numpy(masks_NHW).to(device),
        [guidance.outside_weight(relation, GuidanceConfig())],
        undefined_scores_win=undefined_win,
    )
    choice = guidance.choose(
        similarity_N,
        other_noun_similarity_N,
        coherence_1N[0].double().cpu().numpy(),
        np.array(case["boxes"], dtype=np.float64),
        relation,
        GuidanceConfig(),
        undefined_scores_win=undefined_win,
    )
    return similarity_N, choice


def _scores(features_NE: Tensor, text_1E: Tensor) -> _Array:
    scores_1N = guidance.similarity_scores(features_NE, text_1E, _LOGIT_SCALE)
    return np.asarray(scores_1N[0].double().cpu().numpy())


def _run(
    compare: _Compare, path: Path, clip: ClipEncoder | None, device: torch.device
) -> list[Comparison]:
    try:
        return list(compare(path, clip, device))
    except _UNUSABLE as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> DataError:
    reason = str(error).partition("\n")[0]
    return DataError(
        f"Expected golden vectors in {path}, got what cannot be compared "
        f"({type(error).__name__}: {reason}); copy the file again."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of golden vectors")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:i (default: cpu)")
    arguments = parser.parse_args(argv)
    try:
        report = compare_folder(arguments.folder, select_device(arguments.device))
    except (HybridGLError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(report)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
