"""A split through a method: one record for every sentence.

Quirk Q5 makes the picks of an image depend on the proposal counts of all images before it. The caps
that it sets are derived from the counts, before or after the images are scored, so that results do
not depend on the order of the work or on how it is divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridgl.errors import PictureError
from hybridgl.evaluation import ImageEvaluation, Outcome, candidate_caps
from hybridgl.images import RgbImage
from hybridgl.language import ParsedExpression
from hybridgl.pipeline import Scores
from hybridgl.proposals import Proposals
from refer.dataset import Id, Ref, ReferSplit, Sentence
from suite.methods import Method
from suite.pictures import open_image, warn_unreadable
from suite.proposals import ProposalSource
from utils.records import Pick, Record
from utils.runtime import ahead, progress

__all__ = [
    "SampleId",
    "VariantsByCap",
    "all_caps",
    "caps_by_ref",
    "check_truths",
    "count_proposals",
    "effective_cap",
    "evaluate",
    "in_dataset_order",
]

SampleId = tuple[Id, int]
"""Ids of a ref and of one of its sentences."""

VariantsByCap = dict[int, Record]
"""A sample's record under every cap on the candidate counts that was asked for."""


def check_truths(split: ReferSplit) -> None:
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
    """Number of proposals of images, each made if it is not stored; 0 where there is no picture."""
    unreadable = {*split.faults.missing, *split.faults.damaged}
    counts = dict.fromkeys(image_ids, 0)
    readable = [image_id for image_id in counts if image_id not in unreadable]
    counts.update(progress(source.counts(readable), "proposals", "image", total=len(readable)))
    return counts


def effective_cap(method: Method, count: int, cap: int) -> int:
    """The smallest cap on the candidate counts with the same picks.

    Args:
        method: knows from where on a cap changes nothing.
        count: proposals of the image.
        cap: at least the number of candidates that are looked at.
    """
    return max(1, min(cap, count, method.most_candidates))


def caps_by_ref(method: Method, split: ReferSplit, counts: Mapping[int, int]) -> dict[Id, int]:
    """Effective cap of every ref, from every image's proposal count.

    Args:
        method: the method.
        split: the data.
        counts: proposals of all its images.
    """
    shrinks = method.quirks.top_k_shrinks_across_images
    caps = candidate_caps([counts[ref.image_id] for ref in split.refs], shrinks=shrinks)
    return {
        ref.ref_id: effective_cap(method, counts[ref.image_id], cap)
        for ref, cap in zip(split.refs, caps, strict=True)
    }


def all_caps(method: Method, split: ReferSplit, counts: Mapping[int, int]) -> dict[Id, range]:
    """Every effective cap that refs can get, whatever the images before theirs.

    Args:
        method: the method.
        split: the data.
        counts: proposals of the images whose refs are asked for.
    """
    shrinks = method.quirks.top_k_shrinks_across_images
    caps = {}
    for ref in split.refs:
        if ref.image_id in counts:
            largest = effective_cap(method, counts[ref.image_id], counts[ref.image_id])
            caps[ref.ref_id] = range(1 if shrinks else largest, largest + 1)
    return caps


def evaluate(
    method: Method,
    source: ProposalSource,
    split: ReferSplit,
    counts: Mapping[int, int],
    caps: Mapping[Id, Sequence[int]],
) -> dict[SampleId, VariantsByCap]:
    """Records of every sentence of some images, under every cap that is asked for.

    Args:
        method: the method.
        source: proposals.
        split: the data.
        counts: proposals of the images, which are all that are looked at.
        caps: effective caps of every ref of the images.
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
        return _records(method, split, *scored, caps)

    # The device works in this thread, on what another one reads; a third one compares masks.
    variants: dict[SampleId, VariantsByCap] = {}
    done = ahead(record, map(score, ahead(load, samples_of)))
    for of_image in progress(done, "picks", "image", total=len(samples_of)):
        variants |= of_image
    return variants


def in_dataset_order(
    split: ReferSplit, variants: Mapping[SampleId, VariantsByCap], caps: Mapping[Id, int]
) -> list[Record]:
    """The one record of every sentence, in the order of the split.

    Args:
        split: the data.
        variants: of every sample of the split.
        caps: effective cap of every ref.
    """
    return [
        variants[ref.ref_id, sent.sent_id][caps[ref.ref_id]]
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
        truths_SHW: the truth of every sentence, bool.
        image: None where it cannot be read.
        proposals: its masks; none where it cannot be read.
    """

    image_id: int
    samples: Sequence[tuple[Ref, Sentence]]
    expressions: Sequence[ParsedExpression]
    truths_SHW: NDArray[np.bool_]
    image: RgbImage | None
    proposals: Proposals


def _samples(split: ReferSplit, image_ids: Iterable[int]) -> dict[int, list[tuple[Ref, Sentence]]]:
    """Sentences of images, each with its ref; images of refs without sentences are left out.

    They are named among the split's problems.
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
    truth_of = {ref.ref_id: split.truth(ref, drop_overlaps=drop_overlaps) for ref, _ in samples}
    truths_SHW = np.stack([truth_of[ref.ref_id] for ref, _ in samples])
    height, width = truths_SHW.shape[1:]
    image, proposals = None, Proposals.empty((height, width))
    try:
        image = open_image(split, image_id)
        _ = image.pil  # decoded here, while the device works on the image before
        proposals = source.propose(image_id, image)
    except PictureError as error:
        warn_unreadable(split, image_id, error)
        image = None
    expressions = [parsed[sentence.raw] for _, sentence in samples]
    return _Loaded(image_id, samples, expressions, truths_SHW, image, proposals)


def _records(
    method: Method,
    split: ReferSplit,
    loaded: _Loaded,
    scores: Sequence[Scores],
    caps: Mapping[Id, Sequence[int]],
) -> dict[SampleId, VariantsByCap]:
    evaluation = ImageEvaluation(loaded.proposals, loaded.truths_SHW)
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
            "truncated": method.backbones.clip.is_truncated(expression.sentence),
            "num_proposals": len(loaded.proposals),
        }
        of_cap = variants[ref.ref_id, sentence.sent_id] = {}
        for cap in caps[ref.ref_id]:
            picks = dict(nothing)
            if scores:
                picks.update(method.choose(scores[row], cap).picks)
            of_cap[cap] = Record(**described, **_outcome_fields(evaluation.outcome(row, picks)))
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
