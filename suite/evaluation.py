"""A split through the method: one record for every sentence."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from hybridgl.evaluation import candidate_caps, outcomes
from hybridgl.images import RgbImage
from hybridgl.pipeline import HybridGL
from refer.errors import DataError
from refer.reader import ReferSplit
from utils.records import Record

__all__ = ["caps_by_ref", "check_truths", "count_proposals", "evaluate", "open_image"]


def open_image(split: ReferSplit, image_id: int) -> RgbImage:
    """A picture of the split, of the size that its annotations are in.

    Raises:
        DataError: it has another size.
    """
    image, info = (
        RgbImage(split.image_path(image_id), apply_orientation=False),
        split.images[image_id],
    )
    if image.hw != (info.height, info.width):
        raise DataError(
            f"Expected {info.width} x {info.height} pixels in {image.name}, as annotated, got "
            f"{image.hw[1]} x {image.hw[0]}. Fetch the file again."
        )
    return image


def check_truths(model: HybridGL, split: ReferSplit) -> None:
    """Read every mask of the split once, so that a broken one stops a run at its start.

    Raises:
        DataError: an annotation's segmentation is broken.
    """
    for ref in tqdm(split.refs, desc="annotations", unit="ref", disable=None, leave=False):
        split.truth(ref, drop_overlaps=model.config.quirks.overlapping_polygons_dropped)


def count_proposals(model: HybridGL, split: ReferSplit) -> dict[int, int]:
    """Number of proposals of every image, each made if the store lacks it."""
    return {
        image_id: model.count_proposals(open_image(split, image_id))
        for image_id in tqdm(split.images, desc="proposals", unit="image", disable=None)
    }


def caps_by_ref(model: HybridGL, split: ReferSplit, counts: dict[int, int]) -> dict[int, int]:
    """Cap on the candidate counts of every ref (quirk Q5), from every image's proposal count."""
    caps = candidate_caps(
        [counts[ref.image_id] for ref in split.refs],
        shrinks=model.config.quirks.top_k_shrinks_across_images,
    )
    return {ref.ref_id: cap for ref, cap in zip(split.refs, caps, strict=True)}


def evaluate(
    model: HybridGL, split: ReferSplit, counts: dict[int, int], caps: dict[int, int]
) -> list[Record]:
    """A record for every sentence, in dataset order.

    Args:
        model: the method.
        split: the data.
        counts: number of proposals of every image.
        caps: from ``caps_by_ref``.
    """
    drop_overlaps = model.config.quirks.overlapping_polygons_dropped
    records: dict[tuple[int, int], Record] = {}
    for image_id, refs in tqdm(
        split.refs_by_image().items(), desc="picks", unit="image", disable=None
    ):
        image = open_image(split, image_id)
        samples = [(ref, sentence) for ref in refs for sentence in ref.sentences]
        if not samples:  # named among the split's problems
            continue
        proposals = model.propose(image)
        predictions = model.predict(
            image,
            proposals,
            model.parse([sentence.raw for _, sentence in samples]),
            [caps[ref.ref_id] for ref, _ in samples],
        )
        truth_of = {ref.ref_id: split.truth(ref, drop_overlaps=drop_overlaps) for ref in refs}
        truths_SHW = np.stack([truth_of[ref.ref_id] for ref, _ in samples])
        results = outcomes(proposals, predictions, truths_SHW)
        for (ref, sentence), prediction, outcome in zip(samples, predictions, results, strict=True):
            expression = prediction.expression
            records[ref.ref_id, sentence.sent_id] = Record(
                dataset=split.dataset,
                split=split.split,
                ref_id=ref.ref_id,
                sent_id=sentence.sent_id,
                image_id=image_id,
                sentence=sentence.raw,
                kind=sentence.kind,
                noun_phrase=expression.noun_phrase,
                num_other_nouns=len(expression.other_nouns),
                position=expression.position.value,
                relation=expression.relation.value,
                truncated=model.clip.is_truncated(expression.sentence),
                num_proposals=counts[image_id],
                **outcome.counts(),
            )
    return [records[ref.ref_id, sent.sent_id] for ref in split.refs for sent in ref.sentences]
