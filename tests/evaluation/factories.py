"""Records by hand, and a method and proposals that need no model."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from evaluation.proposals import ProposalSource
from evaluation.records import PredictionCounts, Record
from hybridgl.config import MethodConfig
from hybridgl.language import ParsedExpression, Position, Relation
from hybridgl.masks import Proposals, mask_boxes_xywh
from hybridgl.methods import Method, Prediction, Scores
from hybridgl.models import Models
from hybridgl.settings import setting
from hybridgl.weights.registry import weight_set

# Records: ground truths of 100 pixels, predictions by intersection and union.

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
        "image_file": f"{sent_id}.jpg",
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


# A method and a source of proposals without any model.


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyConfig(MethodConfig):
    """Settings of the toy: one that its scores depend on, and one that only its choices do."""

    sharpness: float = setting(1.0, low=0, help="factor on the scores")
    most: int = setting(3, low=1, late=True, help="candidates at most")


class ToyMethod(Method):
    """Scores masks by the colour under them; the number of candidates decides what it predicts.

    ``first`` is the best proposal, ``last`` the worst of the candidates, so that quirk Q5 shows.
    """

    name = "toy"
    variants = ("first", "last")
    models_needed = ("clip", "parser")
    Config = ToyConfig

    def __init__(self, models=None, config=None, store=None):
        models = models or Models(weight_set("tiny"), device=torch.device("cpu"))
        super().__init__(models, config or ToyConfig(), store)
        self.scored = []

    @property
    def skips_without_proposals(self):
        return self.config.quirks.images_without_proposals_skipped

    def load(self):
        self.models.require("clip")

    def score(self, image, sentences, proposals):
        self.scored.append(list(sentences))
        colours_N3 = np.array([image.pixels_HW3[mask].mean(0) for mask in proposals.masks_NHW])
        return [
            Scores(
                {"similarity_N": self.config.sharpness * _similarity(sentence, colours_N3)},
                {"sentence": sentence},
            )
            for sentence in sentences
        ]

    def choose(self, scores, /, *, k_limit=None):
        sentence, similarity_N = scores.meta["sentence"], scores.arrays["similarity_N"]
        order = np.argsort(-similarity_N, kind="stable").tolist()
        limit = min(self.config.most, len(order), len(order) if k_limit is None else k_limit)
        return Prediction(
            proposals={"first": order[0], "last": order[limit - 1]} if order else {},
            scores={"first": similarity_N[order[0]], "last": math.nan} if order else {},
            expression=ParsedExpression(
                sentence.lower(), sentence[:3], "", (), ("x", "y"), Position.LEFT, Relation.WITHIN
            ),
            truncated=sentence == "BLUE",
            similarity_N=similarity_N,
        )


def _similarity(sentence, colours_N3):
    seed = int(hashlib.sha256(sentence.encode()).hexdigest()[:8], 16)
    direction_3 = np.random.default_rng(seed).normal(size=3)
    return np.asarray(colours_N3.reshape(-1, 3) @ direction_3)


class MaskMethod(ToyMethod):
    """Predicts a mask of its own: the upper half of the image."""

    name = "mask"
    variants = ("mask",)
    needs_proposals = False

    def score(self, image, sentences, proposals):
        assert len(proposals) == 0
        return [Scores({}, {"hw": list(image.hw)}) for _ in sentences]

    def choose(self, scores, /, *, k_limit=None):
        mask_HW = np.zeros(scores.meta["hw"], dtype=bool)
        mask_HW[: len(mask_HW) // 2] = True
        return Prediction(masks={"mask": mask_HW})


class Blocks(ProposalSource):
    """Proposes the same blocks in every image: five, or as many of them as are asked for.

    Args:
        counts: of proposals by image, where not five.
    """

    name = "blocks"
    models = ()
    warnings = ()
    batch_size = 2

    def __init__(self, counts=None):
        self.counts = counts or {}
        self.asked = []

    def submit(self, images):
        self.asked += [image_id for image_id, _ in images]
        return [partial(self.propose, *one) for one in images]

    def propose(self, image_id, image):
        height, width = image.hw
        masks_NHW = np.zeros((5, height, width), dtype=bool)
        masks_NHW[0, :, : width // 2] = True
        masks_NHW[1, :, width // 2 :] = True
        masks_NHW[2, 0, 0] = True
        masks_NHW[3, 16:48, 8:32] = True
        masks_NHW[4, 16:40, 56:80] = True
        return proposals_of(masks_NHW[: self.counts.get(image_id, 5)])

    def settings(self):
        return {"source": "blocks", "counts": sorted(self.counts.items())}


def proposals_of(masks_NHW):
    """Proposals of some masks, with scores of 1."""
    ones_N = np.ones(len(masks_NHW), dtype=np.float32)
    return Proposals(masks_NHW, mask_boxes_xywh(masks_NHW), ones_N, ones_N)
