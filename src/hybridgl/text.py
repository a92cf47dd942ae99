"""Text features of parsed expressions.

Source: HybridGL (CVPR 2025) section 3.2; the ensemble is that of Global-Local CLIP (CVPR 2023).
Shapes: S sentences, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridgl.config import TextConfig
from hybridgl.language import ParsedExpression

__all__ = ["ExpressionFeatures", "expression_features"]


@dataclass(frozen=True, slots=True, eq=False)
class ExpressionFeatures:
    """What CLIP says of sentences, un-normalised.

    Attributes:
        expression_SE: feature of the object, float32, (S, E).
        other_nouns_SE: mean feature of the other nouns; 0 where there are none.
        has_others: whether a sentence has other nouns.
    """

    expression_SE: Tensor
    other_nouns_SE: Tensor
    has_others: tuple[bool, ...]


def expression_features(
    encode: Callable[[Sequence[str]], Tensor],
    expressions: Sequence[ParsedExpression],
    config: TextConfig,
) -> ExpressionFeatures:
    """Embed sentences, noun phrases and other nouns in one call.

    Args:
        encode: texts to features (L, E); computes a repeated text once.
        expressions: parsed sentences.
        config: weight of the sentence, prompt of the other nouns.
    """
    sentences = [expression.sentence for expression in expressions]
    phrases = [expression.noun_phrase for expression in expressions]
    others = [
        config.other_noun_prompt.format(phrase)
        for expression in expressions
        for phrase in expression.other_noun_phrases
    ]
    features = encode(sentences + phrases + others)
    sentence_SE, phrase_SE, other_OE = features.split([len(sentences), len(phrases), len(others)])
    counts = [len(expression.other_noun_phrases) for expression in expressions]
    means = [
        group.mean(dim=0) if len(group) else features.new_zeros(features.shape[1])
        for group in other_OE.split(counts)
    ]
    return ExpressionFeatures(
        expression_SE=config.sentence_weight * sentence_SE
        + (1 - config.sentence_weight) * phrase_SE,
        other_nouns_SE=torch.stack(means) if means else features.new_zeros(0, features.shape[1]),
        has_others=tuple(count > 0 for count in counts),
    )
