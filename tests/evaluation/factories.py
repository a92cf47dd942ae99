"""Records by hand: ground truths of 100 pixels, predictions by intersection and union."""

from __future__ import annotations

from evaluation.records import PredictionCounts, Record

GT_AREA = 100


def counts_of(intersection, union, *, proposal=0, gt_area=GT_AREA):
    """Counts of a prediction; at 480 x 480 twice the intersection and three times the union."""
    gt_area_480 = 2 * gt_area
    return PredictionCounts(
        proposal=proposal,
        area=union - gt_area + intersection,
        intersection=intersection,
        area_480=max(3 * union - gt_area_480 + 2 * intersection, 0),
        intersection_480=2 * intersection,
    )


def record_of(sent_id, predictions, /, *, num_proposals=2, **changes):
    """A record with an oracle that is perfect and a chance of a quarter.

    Args:
        sent_id: also of the ref and of the image.
        predictions: intersection and union by variant; ignored without proposals.
        num_proposals: of the image.
        changes: of other fields.
    """
    nothing = PredictionCounts(
        proposal=None, area=0, intersection=0, area_480=0, intersection_480=0
    )
    values = {
        "dataset": "refcoco",
        "split": "val",
        "ref_id": sent_id,
        "sent_id": sent_id,
        "image_id": sent_id,
        "image_error": False,
        "sentence": "the cat",
        "kind": None,
        "noun_phrase": "the cat",
        "num_other_nouns": 0,
        "position": "none",
        "relation": "none",
        "truncated": False,
        "num_proposals": num_proposals,
        "oracle_area": GT_AREA if num_proposals else 0,
        "oracle_intersection": GT_AREA if num_proposals else 0,
        "chance_iou": 0.25 if num_proposals else 0.0,
        "gt_area": GT_AREA,
        "gt_area_480": 2 * GT_AREA,
        "predictions": {
            name: counts_of(*pair) if num_proposals else nothing
            for name, pair in predictions.items()
        },
    }
    return Record(**{**values, **changes})
