"""The masks that a run predicted, as COCO results: for other programs, or as proposals of a run.

Source: COCO's format of results (https://cocodataset.org/#format-results).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.evaluate import Evaluation, Made
from hybridgl.files import atomic_write_bytes
from hybridgl.masks import encode_rle
from hybridgl.program import progress
from refer.dataset import Ref

__all__ = ["write_predicted_masks"]

_CATEGORY = 1
"""COCO wants one; an expression is no category."""


def write_predicted_masks(path: Path, evaluation: Evaluation, made: Sequence[Made]) -> int:
    """Write the method's mask of every sentence, in the order of the records.

    Each is an object of ``image_id``, ``category_id``, ``ref_id``, ``sent_id``, ``segmentation``
    (compressed run lengths), ``bbox``, ``area``, and ``score``, the similarity of mask and
    sentence, 1 where the method compares none. Sentences without a prediction, or with an empty
    one, have no object.

    Args:
        path: the JSON file.
        evaluation: that made the records.
        made: records of one run.

    Returns:
        Number of the masks.
    """
    variant = evaluation.method.variants[-1]
    by_image: dict[int, list[int]] = {}
    for row, (record, _) in enumerate(made):
        if record.predictions[variant].area:
            by_image.setdefault(record.image_id, []).append(row)
    refs = {ref.ref_id: ref for ref in evaluation.split.refs}
    results: dict[int, dict[str, Any]] = {}
    for image_id, rows in progress(by_image.items(), "masks", "image"):
        masks = _predicted(evaluation, refs, image_id, [made[row] for row in rows])
        for row, counts in zip(rows, encode_rle(np.stack(list(masks))), strict=True):
            results[row] = _result(evaluation, made[row], variant, counts)
    lines = ",\n".join(json.dumps(results[row]) for row in sorted(results))
    atomic_write_bytes(path, f"[\n{lines}\n]\n".encode("ascii"))
    return len(results)


def _predicted(
    evaluation: Evaluation, refs: dict[int | str, Ref], image_id: int, made: Sequence[Made]
) -> Iterator[NDArray[np.bool_]]:
    """Draw the predicted mask of every sentence of an image."""
    variant = evaluation.method.variants[-1]
    masks_NHW: NDArray[np.bool_] | None = None
    for record, limit in made:
        index = record.predictions[variant].proposal
        if index is None:
            ref = refs[record.ref_id]
            yield evaluation.predict(ref, record.sent_id, limit).masks[variant]
            continue
        if masks_NHW is None:
            image = evaluation.split.open_image(image_id)
            (finish,) = evaluation.source.submit([(image_id, image)])
            masks_NHW = finish().masks_NHW
        yield masks_NHW[index]


def _result(evaluation: Evaluation, made: Made, variant: str, counts: str) -> dict[str, Any]:
    record, _ = made
    prediction, info = record.predictions[variant], evaluation.split.images[record.image_id]
    return {
        "image_id": record.image_id,
        "category_id": _CATEGORY,
        "ref_id": record.ref_id,
        "sent_id": record.sent_id,
        "segmentation": {"size": [info.height, info.width], "counts": counts},
        "bbox": prediction.box,
        "area": prediction.area,
        "score": 1.0 if prediction.similarity is None else prediction.similarity,
    }
