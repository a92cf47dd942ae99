"""Intersection over union, exact in integers, under the protocols of the field.

oIoU (overall, cumulative IoU) is the sum of all intersections over the sum of all unions; mIoU is
the mean of the samples' own ratios; precision at X is the share of samples with a ratio above X.
All are functions of the integer counts alone.

Shapes: N proposals, S truths or samples, H x W image pixels, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PROTOCOLS",
    "EvaluationProtocol",
    "PixelCounts",
    "bootstrap_intervals",
    "intersection_and_union",
    "scores",
]

_PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)

_RESAMPLES_PER_CHUNK = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationProtocol:
    """How a part of the field computes its scores.

    Attributes:
        name: as on the command line.
        mean_name: what it calls the mean of the ratios.
        overall_name: what it calls the ratio of the sums.
        at_480: whether prediction and truth are resized to 480 x 480 pixels first.
        empty_union: ratio of a sample whose prediction and truth are both empty.
        precisions: X of every precision at X, as ratios.
        at_least: whether a ratio of exactly X counts.
    """

    name: str
    mean_name: str = "mIoU"
    overall_name: str = "oIoU"
    at_480: bool = False
    empty_union: float = 0.0
    precisions: tuple[float, ...] = _PRECISIONS
    at_least: bool = False


PROTOCOLS: Mapping[str, EvaluationProtocol] = {
    protocol.name: protocol
    for protocol in (
        EvaluationProtocol(name="zero-shot"),
        EvaluationProtocol(name="lavt", at_480=True, at_least=True),
        EvaluationProtocol(
            name="lisa", mean_name="gIoU", overall_name="cIoU", empty_union=1.0, precisions=()
        ),
        EvaluationProtocol(name="phrasecut"),
    )
}
"""By name: HybridGL's and Global-Local CLIP's; LAVT's, which most trained models follow; LISA's,
which large models follow; PhraseCut's, at the annotated size of the image."""


@dataclass(frozen=True, slots=True)
class PixelCounts:
    """Pixel counts of one prediction and its truth.

    Attributes:
        intersection: pixels in both.
        union: pixels in either.
    """

    intersection: int
    union: int


def intersection_and_union(
    predictions_NHW: NDArray[np.bool_], gt_masks_SHW: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Intersections and unions of every prediction with every truth.

    Args:
        predictions_NHW: bool, (N, H, W).
        gt_masks_SHW: bool, (S, H, W).

    Returns:
        Two int64 arrays (N, S), in pixels.

    Raises:
        ValueError: heights or widths differ.

    Example:
        >>> a = np.array([[[True, True, False]]])
        >>> intersection_and_union(a, np.array([[[False, True, True]]]))
        (array([[1]]), array([[3]]))
    """
    if predictions_NHW.shape[1:] != gt_masks_SHW.shape[1:]:
        raise ValueError(
            f"Expected predictions and truths of one size, got {predictions_NHW.shape[1:]} "
            f"and {gt_masks_SHW.shape[1:]}."
        )
    pixels = math.prod(gt_masks_SHW.shape[1:])
    flat_N = predictions_NHW.reshape(len(predictions_NHW), pixels)
    flat_S = gt_masks_SHW.reshape(len(gt_masks_SHW), pixels)
    intersections = np.zeros((len(flat_N), len(flat_S)), dtype=np.int64)
    for column, truth in enumerate(flat_S):
        intersections[:, column] = np.count_nonzero(flat_N[:, truth], axis=1)
    areas_N1 = np.count_nonzero(flat_N, axis=1)[:, None]
    areas_1S = np.count_nonzero(flat_S, axis=1)[None]
    return intersections, areas_N1 + areas_1S - intersections


def scores(
    intersections_S: NDArray[np.int64], unions_S: NDArray[np.int64], protocol: EvaluationProtocol
) -> dict[str, float]:
    """All scores of a protocol, in percent, by their names in it.

    Args:
        intersections_S: pixels in both masks, of every sample, at least one.
        unions_S: pixels in either mask.
        protocol: what the counts were made for, as far as their resolution goes.

    Example:
        >>> counts = np.array([1, 0, 4, 1]), np.array([2, 2, 4, 2])
        >>> scores(*counts, EvaluationProtocol(name="one threshold", precisions=(0.5,)))
        {'oIoU': 60.0, 'mIoU': 50.0, 'P@0.5': 25.0}
    """
    sums_C = _sample_terms(intersections_S, unions_S, protocol).sum(axis=0)
    return dict(zip(_names(protocol), _ratios(sums_C[None], protocol)[0].tolist(), strict=True))


def bootstrap_intervals(
    image_ids: Sequence[int | str],
    intersections_S: NDArray[np.int64],
    unions_S: NDArray[np.int64],
    protocol: EvaluationProtocol,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """How far the scores would move with other images: percentile bootstrap over images.

    The sentences of an image share its proposals and are not independent: images are drawn with
    replacement, each with all its samples.

    Args:
        image_ids: image of every sample, at least one.
        intersections_S: pixels in both masks, of every sample.
        unions_S: pixels in either mask.
        protocol: as for ``scores``.
        resamples: B, how many sets of images are drawn.
        level: share of the drawn scores inside the interval.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        Lower and upper end in percent, by the scores' names.
    """
    index_of = {image_id: index for index, image_id in enumerate(dict.fromkeys(image_ids))}
    terms_SC = _sample_terms(intersections_S, unions_S, protocol)
    sums_IC = np.zeros((len(index_of), terms_SC.shape[1]))
    np.add.at(sums_IC, [index_of[image_id] for image_id in image_ids], terms_SC)
    rng = np.random.default_rng(seed)
    shares_I = np.full(len(index_of), 1 / len(index_of))
    drawn = []
    for start in range(0, resamples, _RESAMPLES_PER_CHUNK):
        size = min(_RESAMPLES_PER_CHUNK, resamples - start)
        drawn.append(rng.multinomial(len(index_of), shares_I, size=size) @ sums_IC)
    ratios_BC = _ratios(np.concatenate(drawn), protocol)
    tail = 100 * (1 - level) / 2
    low_C, high_C = np.percentile(ratios_BC, [tail, 100 - tail], axis=0)
    pairs = zip(low_C.tolist(), high_C.tolist(), strict=True)
    return dict(zip(_names(protocol), pairs, strict=True))


def _names(protocol: EvaluationProtocol) -> list[str]:
    precisions = [f"P@{threshold:g}" for threshold in protocol.precisions]
    return [protocol.overall_name, protocol.mean_name, *precisions]


def _sample_terms(
    intersections_S: NDArray[np.int64], unions_S: NDArray[np.int64], protocol: EvaluationProtocol
) -> NDArray[np.float64]:
    """What scores are sums of, (S, C): 1, intersection, union, ratio, a precision's hits each."""
    ratios_S = np.full(len(unions_S), protocol.empty_union)
    np.divide(intersections_S, unions_S, out=ratios_S, where=unions_S > 0)
    hits = [
        ratios_S >= threshold if protocol.at_least else ratios_S > threshold
        for threshold in protocol.precisions
    ]
    ones_S = np.ones(len(unions_S))
    return np.stack([ones_S, intersections_S, unions_S, ratios_S, *hits], axis=1).astype(np.float64)


def _ratios(sums_BC: NDArray[np.float64], protocol: EvaluationProtocol) -> NDArray[np.float64]:
    """Scores in percent, in the order of ``_names``, from sums of ``_sample_terms``."""
    count_B, intersection_B, union_B = sums_BC[:, :3].T
    overall_B = np.full(len(sums_BC), protocol.empty_union)
    np.divide(intersection_B, union_B, out=overall_B, where=union_B > 0)
    means_BC = sums_BC[:, 3:] / count_B[:, None]
    return 100 * np.concatenate([overall_B[:, None], means_BC], axis=1)
