"""Intersection over union, exact in integers, under the protocols of the field.

oIoU (overall, cumulative IoU) is the sum of all intersections over the sum of all unions; mIoU is
the mean of the samples' own IoUs; precision at X is the share of samples with an IoU above X. All
are functions of the integer counts alone.

Shapes: N predictions, S ground truths or samples, H x W image pixels, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybridgl.masks import mask_areas

__all__ = [
    "PROTOCOLS",
    "EvaluationProtocol",
    "bootstrap_intervals",
    "intersection_and_union",
    "intersections",
    "scores",
]

_PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)

_RESAMPLES_PER_CHUNK = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationProtocol:
    """How a part of the field computes its scores.

    Attributes:
        name: as on the command line.
        mean_name: what it calls the mean of the samples' IoUs.
        overall_name: what it calls the IoU of the sums.
        at_480: whether prediction and ground truth are resized to 480 x 480 pixels first.
        empty_union: IoU of a sample whose prediction and ground truth are both empty.
        precisions: X of every precision at X, 0 to 1.
        at_least: whether an IoU of exactly X counts.
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


def intersection_and_union(
    predictions_NHW: NDArray[np.bool_], gt_masks_SHW: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the intersection and union of every prediction with every ground truth.

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
            f"Expected predictions and ground truths of one size, got {predictions_NHW.shape[1:]} "
            f"and {gt_masks_SHW.shape[1:]}; resize the predictions."
        )
    intersections_NS = intersections(predictions_NHW, gt_masks_SHW)
    areas_N1, areas_1S = mask_areas(predictions_NHW)[:, None], mask_areas(gt_masks_SHW)[None]
    return intersections_NS, areas_N1 + areas_1S - intersections_NS


def intersections(
    predictions_NHW: NDArray[np.bool_], gt_masks_SHW: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Count the pixels that every prediction shares with every ground truth.

    Only the box of a ground truth is looked at: objects are small.

    Args:
        predictions_NHW: bool, (N, H, W).
        gt_masks_SHW: bool, (S, H, W).

    Returns:
        int64, (N, S), in pixels.
    """
    shared_NS = np.zeros((len(predictions_NHW), len(gt_masks_SHW)), dtype=np.int64)
    for column, gt_mask_HW in enumerate(gt_masks_SHW):
        rows, columns = (np.flatnonzero(gt_mask_HW.any(axis=axis)) for axis in (1, 0))
        if len(rows):
            box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            shared_NS[:, column] = mask_areas(predictions_NHW[:, *box] & gt_mask_HW[box])
    return shared_NS


def scores(
    intersections_S: NDArray[np.int64], unions_S: NDArray[np.int64], protocol: EvaluationProtocol
) -> dict[str, float]:
    """Compute all scores of a protocol, in percent, by their names in it.

    Args:
        intersections_S: pixels in both masks, of every sample, at least one.
        unions_S: pixels in either mask.
        protocol: what the counts were made for, as far as their resolution goes.

    Example:
        >>> counts = np.array([1, 0, 4, 1]), np.array([2, 2, 4, 2])
        >>> scores(*counts, EvaluationProtocol(name="one threshold", precisions=(0.5,)))
        {'oIoU': 60.0, 'mIoU': 50.0, 'P@0.5': 25.0}
    """
    sums = _sample_terms(intersections_S, unions_S, protocol).sum(axis=0)
    return dict(zip(_names(protocol), _ratios(sums[None], protocol)[0].tolist(), strict=True))


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
    """Compute intervals in which the scores would lie with other images: percentile bootstrap.

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
    terms = _sample_terms(intersections_S, unions_S, protocol)
    sums_by_image = np.zeros((len(index_of), terms.shape[1]))
    np.add.at(sums_by_image, [index_of[image_id] for image_id in image_ids], terms)
    rng = np.random.default_rng(seed)
    shares = np.full(len(index_of), 1 / len(index_of))
    drawn = []
    for start in range(0, resamples, _RESAMPLES_PER_CHUNK):
        size = min(_RESAMPLES_PER_CHUNK, resamples - start)
        drawn.append(rng.multinomial(len(index_of), shares, size=size) @ sums_by_image)
    drawn_scores = _ratios(np.concatenate(drawn), protocol)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(drawn_scores, [tail, 100 - tail], axis=0)
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    return dict(zip(_names(protocol), pairs, strict=True))


def _names(protocol: EvaluationProtocol) -> list[str]:
    precisions = [f"P@{threshold:g}" for threshold in protocol.precisions]
    return [protocol.overall_name, protocol.mean_name, *precisions]


def _sample_terms(
    intersections_S: NDArray[np.int64], unions_S: NDArray[np.int64], protocol: EvaluationProtocol
) -> NDArray[np.float64]:
    """List what scores are sums of: 1, intersection, union, IoU, a precision's hits each."""
    ious = np.full(len(unions_S), protocol.empty_union)
    np.divide(intersections_S, unions_S, out=ious, where=unions_S > 0)
    hits = [
        ious >= threshold if protocol.at_least else ious > threshold
        for threshold in protocol.precisions
    ]
    ones = np.ones(len(unions_S))
    return np.stack([ones, intersections_S, unions_S, ious, *hits], axis=1).astype(np.float64)


def _ratios(sums: NDArray[np.float64], protocol: EvaluationProtocol) -> NDArray[np.float64]:
    """Compute scores in percent, in the order of ``_names``, from sums of ``_sample_terms``."""
    counts, intersections, unions = sums[:, :3].T
    overall = np.full(len(sums), protocol.empty_union)
    np.divide(intersections, unions, out=overall, where=unions > 0)
    means = sums[:, 3:] / counts[:, None]
    return 100 * np.concatenate([overall[:, None], means], axis=1)
