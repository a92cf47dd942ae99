"""A split through a method: one record for every sentence.

Quirk Q5 makes the picks of an image depend on the proposal counts of all images before it. The k_limits
that it sets are derived from the counts, before or after the images are scored, so that results do
not depend on the order of the work or on how it is divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.counts import ImageEvaluation, Outcome, running_k_limits
from evaluation.methods import Method
from evaluation.proposals import ProposalSource
from evaluation.records import Pick, Record
from hybridgl.errors import ImageError
from hybridgl.images import RgbImage
from hybridgl.language import ParsedExpression
from hybridgl.methods.hybridgl import Scores
from hybridgl.proposals import Proposals
from refer.dataset import Id, Ref, ReferSplit, Sentence
from utils.runtime import prefetch, progress

__all__ = [
    "SampleId",
    "VariantsByCap",
    "all_k_limits",
    "check_ground_truth",
    "count_proposals",
    "effective_k_limit",
    "evaluate",
    "in_dataset_order",
    "k_limit_by_ref",
]

SampleId = tuple[Id, int]
"""Ids of a ref and of one of its sentences."""

VariantsByCap = dict[int, Record]
"""A sample's record under every k_limit on the candidate counts that was asked for."""


def check_ground_truth(split: ReferSplit) -> None:
    """Check every mask that is referred to, so that a broken one stops a run at its start.

    Raises:
        DataError: an annotation's segmentation is broken.
    """
    for ref in split.refs:
        for ann_id in ref.ann_ids:
            split.check_mask(ann_id)


def count_proposals(
    source: ProposalSource, split: ReferSplit, image_ids: Iterable[int]
) -> dict[int, int]:
    """Number of proposals of images, each made if it is not stored; 0 where there is no image."""
    unreadable = set(split.image_errors.unreadable)
    counts = dict.fromkeys(image_ids, 0)
    readable = [image_id for image_id in counts if image_id not in unreadable]
    counts.update(progress(source.counts(readable), "proposals", "image", total=len(readable)))
    return counts


def effective_k_limit(method: Method, count: int, k_limit: int) -> int:
    """The smallest k_limit on the candidate counts with the same picks.

    Args:
        method: knows from where on a k_limit changes nothing.
        count: proposals of the image.
        k_limit: at least the number of candidates that are looked at.
    """
    return max(1, min(k_limit, count, method.most_candidates))


def k_limit_by_ref(method: Method, split: ReferSplit, counts: Mapping[int, int]) -> dict[Id, int]:
    """Effective k_limit of every ref, from every image's proposal count.

    Args:
        method: the method.
        split: the data.
        counts: proposals of all its images.
    """
    shrinks = method.quirks.top_k_shrinks_across_images
    k_limits = running_k_limits([counts[ref.image_id] for ref in split.refs], shrinks=shrinks)
    return {
        ref.ref_id: effective_k_limit(method, counts[ref.image_id], k_limit)
        for ref, k_limit in zip(split.refs, k_limits, strict=True)
    }


def all_k_limits(method: Method, split: ReferSplit, counts: Mapping[int, int]) -> dict[Id, range]:
    """Every effective k_limit that refs can get, whatever the images before theirs.

    Args:
        method: the method.
        split: the data.
        counts: proposals of the images whose refs are asked for.
    """
    shrinks = method.quirks.top_k_shrinks_across_images
    k_limits = {}
    for ref in split.refs:
        if ref.image_id in counts:
            largest = effective_k_limit(method, counts[ref.image_id], counts[ref.image_id])
            k_limits[ref.ref_id] = range(1 if shrinks else largest, largest + 1)
    return k_limits


def evaluate(
    method: Method,
    source: ProposalSource,
    split: ReferSplit,
    counts: Mapping[int, int],
    k_limits: Mapping[Id, Sequence[int]],
) -> dict[SampleId, VariantsByCap]:
    """Records of every sentence of some images, under every k_limit that is asked for.

    Args:
        method: the method.
        source: proposals.
        split: the data.
        counts: proposals of the images, which are all that are looked at.
        k_limits: effective k_limits of every ref of the images.
    """
    samples_of = _samples(split, counts)
    raws = [sentence.raw for samples in samples_of.values() for _, sentence in samples]
    parsed = dict(zip(raws, method.parse(raws), strict=True))

    def load(image_id: int) -> _Loaded:
        return _load(method, source, split, samples_of[image_id], parsed)

    def score(loaded: _Loaded) -> tuple[_Loaded, list[Scores]]:
        if loaded.image is None:
            return loaded, []
        return loaded, method.score(loaded.image, loaded.proposals, loaded.expressions)

    def record(scored: tuple[_Loaded, list[Scores]]) -> dict[SampleId, VariantsByCap]:
        return _records(method, split, *scored, k_limits)

    # The device works in this thread, on what another one reads; a third one compares masks.
    variants: dict[SampleId, VariantsByCap] = {}
    done = prefetch(record, map(score, prefetch(load, samples_of)))
    for of_image in progress(done, "picks", "image", total=len(samples_of)):
        variants |= of_image
    return variants


def in_dataset_order(
    split: ReferSplit, variants: Mapping[SampleId, VariantsByCap], k_limits: Mapping[Id, int]
) -> list[Record]:
    """The one record of every sentence, in the order of the split.

    Args:
        split: the data.
        variants: of every sample of the split.
        k_limits: effective k_limit of every ref.
    """
    return [
        variants[ref.ref_id, sent.sent_id][k_limits[ref.ref_id]]
        for ref in split.refs
        for sent in ref.sentences
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """An image with all that its sentences are scored with.

    Attributes:
        image_id: its id.
        samples: its sentences, each with its ref.
        expressions: the sentences, parsed.
        gt_masks_SHW: the truth of every sentence, bool.
        image: None where it cannot be read.
        proposals: its masks; none where it cannot be read.
    """

    image_id: int
    samples: Sequence[tuple[Ref, Sentence]]
    expressions: Sequence[ParsedExpression]
    gt_masks_SHW: NDArray[np.bool_]
    image: RgbImage | None
    proposals: Proposals


def _samples(split: ReferSplit, image_ids: Iterable[int]) -> dict[int, list[tuple[Ref, Sentence]]]:
    """Sentences of images, each with its ref; images of refs without sentences are left out.

    They are named among the split's warnings.
    """
    refs_by_image = split.refs_by_image()
    samples_of = {
        image_id: [(ref, sent) for ref in refs_by_image[image_id] for sent in ref.sentences]
        for image_id in image_ids
    }
    return {image_id: samples for image_id, samples in samples_of.items() if samples}


def _load(
    method: Method,
    source: ProposalSource,
    split: ReferSplit,
    samples: Sequence[tuple[Ref, Sentence]],
    parsed: Mapping[str, ParsedExpression],
) -> _Loaded:
    image_id = samples[0][0].image_id
    drop_overlaps = method.quirks.overlapping_polygons_dropped
    gt_mask_of = {
        ref.ref_id: split.gt_mask(ref, overlapping_polygons_dropped=drop_overlaps)
        for ref, _ in samples
    }
    gt_masks_SHW = np.stack([gt_mask_of[ref.ref_id] for ref, _ in samples])
    height, width = gt_masks_SHW.shape[1:]
    image, proposals = None, Proposals.empty((height, width))
    try:
        image = split.open_image(image_id)
        _ = image.pil  # decoded here, while the device works on the image before
        proposals = source.propose(image_id, image)
    except ImageError as error:
        split.warn_unreadable(image_id, error)
        image = None
    expressions = [parsed[sentence.raw] for _, sentence in samples]
    return _Loaded(image_id, samples, expressions, gt_masks_SHW, image, proposals)


def _records(
    method: Method,
    split: ReferSplit,
    loaded: _Loaded,
    scores: Sequence[Scores],
    k_limits: Mapping[Id, Sequence[int]],
) -> dict[SampleId, VariantsByCap]:
    evaluation = ImageEvaluation(loaded.proposals, loaded.gt_masks_SHW)
    nothing: dict[str, int | None] = dict.fromkeys(method.picks)
    variants: dict[SampleId, VariantsByCap] = {}
    for row, (ref, sentence) in enumerate(loaded.samples):
        expression = loaded.expressions[row]
        described = {
            "dataset": split.dataset,
            "split": split.split,
            "ref_id": ref.ref_id,
            "sent_id": sentence.sent_id,
            "image_id": loaded.image_id,
            "image_missing": loaded.image is None,
            "sentence": sentence.raw,
            "kind": sentence.kind,
            **_parse_fields(expression),
            "truncated": method.models.clip.is_truncated(expression.sentence),
            "num_proposals": len(loaded.proposals),
        }
        of_cap = variants[ref.ref_id, sentence.sent_id] = {}
        for k_limit in k_limits[ref.ref_id]:
            picks = dict(nothing)
            if scores:
                picks.update(method.choose(scores[row], k_limit).picks)
            of_cap[k_limit] = Record(**described, **_outcome_fields(evaluation.outcome(row, picks)))
    return variants


def _parse_fields(expression: ParsedExpression) -> dict[str, Any]:
    return {
        "noun_phrase": expression.noun_phrase,
        "num_other_nouns": len(expression.other_nouns),
        "position": expression.position.value,
        "relation": expression.relation.value,
    }


def _outcome_fields(outcome: Outcome) -> dict[str, Any]:
    best = outcome.best
    return {
        "target_area": outcome.target_area,
        "best_intersection": best.intersection,
        "best_union": best.union,
        "best_iou": best.intersection / best.union if best.union else 0.0,
        "random_iou": outcome.random_iou,
        "picks": {
            name: Pick(
                index=pick.index,
                area=pick.area,
                intersection=pick.overlap.intersection,
                union=pick.overlap.union,
                intersection_480=pick.overlap_480.intersection,
                union_480=pick.overlap_480.union,
            )
            for name, pick in outcome.picks.items()
        },
    }
