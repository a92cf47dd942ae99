"""Spatial guidance: which of the best masks fits relation, attention map and position.

Source: HybridGL (CVPR 2025) section 3.3; quirks Q5, Q6 and Q10 of docs/quirks.md.
Shapes: N proposals, S sentences of one image, K candidates, J context masks, H x W image pixels,
E embedding width. Boxes are x, y, w, h in pixels, origin top left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hybridgl.config import GuidanceConfig
from hybridgl.devices import send
from hybridgl.gem import min_max
from hybridgl.language import Position, Relation

__all__ = [
    "Choice",
    "choose",
    "coherence_scores",
    "outside_weight",
    "position_prior",
    "relation_scores",
    "similarity_scores",
    "weighted_attention",
]

_Floats = NDArray[np.float64]
_Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What each variant predicts for one sentence, and what led to it.

    Attributes:
        features: index of the proposal with the best similarity.
        relations: index of the candidate with the best relation score: the prediction at alpha 0,
            without GEM.
        guided: index of the candidate with the best final score; without any term, ``features``.
        candidates_K: indices of the candidates, best similarity first.
        relation_K: relation scores of the candidates, before softmax.
        coherence_N: coherence score of every proposal.
        final_K: final scores of the candidates.
    """

    features: int
    relations: int
    guided: int
    candidates_K: _Indices
    relation_K: _Floats
    coherence_N: _Floats
    final_K: _Floats

    def score_of(self, proposal: int, scores_K: _Floats) -> float:
        """Return the score of a candidate.

        Args:
            proposal: index of the candidate's proposal.
            scores_K: ``relation_K`` or ``final_K``.
        """
        return float(scores_K[self.candidates_K == proposal][0])


def similarity_scores(features_NE: Tensor, texts_SE: Tensor, logit_scale: float) -> Tensor:
    """Compute the scaled cosine of every mask with every text.

    Args:
        features_NE: mask features, any length.
        texts_SE: text features, any length.
        logit_scale: CLIP's factor on cosines.

    Returns:
        float32, (S, N).
    """
    return logit_scale * F.normalize(texts_SE, dim=-1) @ F.normalize(features_NE, dim=-1).T


def position_prior(
    position: Position, hw: tuple[int, int], *, vertical_priors_disabled: bool
) -> Tensor:
    """Compute the weight of every pixel under a position word.

    Args:
        position: "left" falls from 1 to 0 along x, "right" rises; "middle" rises to
            1 at half the width and falls again; "up" falls and "down" rises along y.
        hw: height and width in pixels.
        vertical_priors_disabled: quirk Q6: "up" and "down" weigh nothing.

    Returns:
        float32, (H, W) or broadcastable to it, 0 to 1.
    """
    height, width = hw
    if position is Position.LEFT:
        return torch.linspace(1, 0, width)[None]
    if position is Position.RIGHT:
        return torch.linspace(0, 1, width)[None]
    if position is Position.MIDDLE:
        half = width // 2
        return torch.cat([torch.linspace(0, 1, half), torch.linspace(1, 0, width - half)])[None]
    if position is Position.UP and not vertical_priors_disabled:
        return torch.linspace(1, 0, height)[:, None]
    if position is Position.DOWN and not vertical_priors_disabled:
        return torch.linspace(0, 1, height)[:, None]
    return torch.ones(1, 1)


def weighted_attention(
    attention_SHW: Tensor, priors: list[Tensor], *, undefined_scores_win: bool = False
) -> Tensor:
    """Weigh attention maps by their position priors, each to mean 1.

    Args:
        attention_SHW: maps at the size of the image, (S, H, W).
        priors: one ``position_prior`` a sentence.
        undefined_scores_win: quirk Q10.

    Returns:
        float32, (S, H, W). A map without contrast is 0, and favours no mask; under Q10 it is NaN.
    """
    scaled_SHW = min_max(attention_SHW, _undefined(undefined_scores_win))
    for attention_HW, prior in zip(scaled_SHW, priors, strict=True):
        attention_HW *= send(prior, attention_HW.device)
    mean_S11 = scaled_SHW.mean(dim=(1, 2), keepdim=True)
    if undefined_scores_win:
        return scaled_SHW / mean_S11
    return scaled_SHW / torch.where(mean_S11 > 0, mean_S11, torch.ones_like(mean_S11))


def outside_weight(relation: Relation, config: GuidanceConfig) -> float:
    """Return b: how much attention outside a mask counts against it."""
    usual, big, small = config.coherence_weights
    return {Relation.BIG: big, Relation.SMALL: small}.get(relation, usual)


def coherence_scores(
    weighted_SHW: Tensor,
    masks_NHW: Tensor,
    outside_weights: list[float],
    *,
    undefined_scores_win: bool = False,
) -> Tensor:
    """Score how masks cover the attention: (2 - b) * mean inside - b * mean outside.

    Args:
        weighted_SHW: from ``weighted_attention``, (S, H, W).
        masks_NHW: bool, (N, H, W). The mean over no pixel is 0; under Q10 it is NaN.
        outside_weights: b of every sentence.
        undefined_scores_win: quirk Q10.

    Returns:
        float32, (S, N).
    """
    # All pixels in one axis: (H * W, S) and (N, H * W).
    attention = weighted_SHW.flatten(1).T
    b_S1 = send(torch.tensor(outside_weights), attention.device)[:, None]
    inside = masks_NHW.flatten(1).float()
    outside = 1 - inside
    least = 0 if undefined_scores_win else 1
    inside_SN = ((inside @ attention) / inside.sum(1, keepdim=True).clamp(min=least)).T
    outside_SN = ((outside @ attention) / outside.sum(1, keepdim=True).clamp(min=least)).T
    return (2 - b_S1) * inside_SN - b_S1 * outside_SN


def relation_scores(
    boxes_xywh: _Floats,
    probability_K: _Floats,
    context_probability_J: _Floats,
    candidates_K: _Indices,
    context_J: _Indices,
    relation: Relation,
    *,
    undefined_scores_win: bool = False,
) -> _Floats:
    """Score how well every candidate stands in the relation to the context masks.

    Args:
        boxes_xywh: boxes of all proposals, (N, 4).
        probability_K: probability of every candidate.
        context_probability_J: probability of every context mask.
        candidates_K: proposal index of every candidate.
        context_J: proposal index of every context mask.
        relation: relation word.
        undefined_scores_win: quirk Q10: the share of a box without area is NaN, not 0.

    Returns:
        float64, (K,): probability of a candidate times that of a context mask, summed over the
        context masks that stand in the relation; "within" weighs each by the share of the
        candidate's box inside the context mask's; "none" holds for every context mask, whose
        probability is not asked.
    """
    if relation is Relation.NONE:
        return probability_K * len(context_J)
    x, y, w, h = boxes_xywh.T
    if relation is Relation.WITHIN:
        undefined = _undefined(undefined_scores_win)
        inner_xywh, outer_xywh = boxes_xywh[candidates_K], boxes_xywh[context_J]
        holds_KJ = _box_share_within(inner_xywh, outer_xywh, undefined)
    else:
        measure, sign = {
            Relation.LEFT: (x + w / 2, -1),
            Relation.RIGHT: (x + w / 2, 1),
            Relation.UP: (y + h / 2, -1),
            Relation.DOWN: (y + h / 2, 1),
            Relation.BIG: (w * h, 1),
            Relation.SMALL: (w * h, -1),
        }[relation]
        signed = sign * measure
        holds_KJ = (signed[candidates_K, None] > signed[None, context_J]).astype(np.float64)
    return np.asarray((probability_K[:, None] * context_probability_J[None] * holds_KJ).sum(axis=1))


def choose(
    similarity_N: _Floats,
    other_noun_similarity_N: _Floats | None,
    coherence_N: _Floats,
    boxes_xywh: _Floats,
    relation: Relation,
    config: GuidanceConfig,
    *,
    undefined_scores_win: bool = False,
    k_limit: int | None = None,
) -> Choice:
    """Choose one proposal for one sentence, by every variant.

    Args:
        similarity_N: similarity of every proposal with the sentence, N > 0.
        other_noun_similarity_N: similarity with the other nouns; None where there are none.
        coherence_N: coherence score of every proposal.
        boxes_xywh: boxes of the proposals, (N, 4).
        relation: relation word.
        config: candidate counts, weights, and the terms that count.
        undefined_scores_win: quirk Q10: NaN is the highest score, the first one wins a tie.
        k_limit: limit on both counts besides N, for quirk Q5; None limits them by N alone.

    Raises:
        ValueError: there is no proposal.
    """
    count = len(similarity_N)
    if not count:
        raise ValueError("Expected at least one proposal, got none; predict an empty mask.")
    limit = count if k_limit is None else min(count, k_limit)
    probability_N = _softmax(similarity_N)
    candidates_K = _best(similarity_N, min(config.num_candidates, limit))
    if other_noun_similarity_N is None:
        context_J, context_probability_J = candidates_K, probability_N[candidates_K]
    else:
        context_J = _best(other_noun_similarity_N, min(config.num_context_masks, limit))
        context_probability_J = _softmax(other_noun_similarity_N)[context_J]
    relation_K = relation_scores(
        boxes_xywh,
        probability_N[candidates_K],
        context_probability_J,
        candidates_K,
        context_J,
        relation,
        undefined_scores_win=undefined_scores_win,
    )
    relation_share_K = _softmax(relation_K)
    final_K = np.zeros(len(candidates_K))
    if config.uses("relationship"):
        final_K += (1 - config.alpha) * relation_share_K
    if config.uses("coherence"):
        final_K += config.alpha * coherence_N[candidates_K]
    return Choice(
        features=int(candidates_K[0]),
        relations=int(candidates_K[np.argmax(relation_share_K)]),
        guided=int(candidates_K[np.argmax(final_K)]),  # which takes NaN for the highest
        candidates_K=candidates_K,
        relation_K=relation_K,
        coherence_N=coherence_N,
        final_K=final_K,
    )


def _undefined(undefined_scores_win: bool) -> float:
    """Return the value of 0 / 0."""
    return math.nan if undefined_scores_win else 0.0


def _box_share_within(inner_xywh: _Floats, outer_xywh: _Floats, undefined: float) -> _Floats:
    """Compute the share of inner boxes in outer ones, (K, J); ``undefined`` without an area."""
    inner_K1, outer_1J = inner_xywh[:, None], outer_xywh[None]
    near = np.maximum(inner_K1[..., :2], outer_1J[..., :2])
    far = np.minimum(inner_K1[..., :2] + inner_K1[..., 2:], outer_1J[..., :2] + outer_1J[..., 2:])
    overlap_KJ = np.clip(far - near, 0, None).prod(axis=-1)
    area_K1 = inner_K1[..., 2:].prod(axis=-1)
    without_area_KJ = np.full_like(overlap_KJ, undefined)
    return np.divide(overlap_KJ, area_K1, out=without_area_KJ, where=area_K1 > 0)


def _best(scores_N: _Floats, count: int) -> _Indices:
    """Return the indices of the highest scores, highest first; the lower index wins a tie."""
    return np.argsort(-scores_N, kind="stable")[:count].astype(np.int64)


def _softmax(values: _Floats) -> _Floats:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())
