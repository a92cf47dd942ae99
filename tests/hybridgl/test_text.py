"""Text features of expressions, with an encoder whose features can be told by hand."""

from __future__ import annotations

import torch

from hybridgl.config import TextConfig
from hybridgl.language import ParsedExpression, Position, Relation
from hybridgl.text import expression_features

FEATURES = {
    "the cat by the chair": [1.0, 0.0],
    "the cat": [0.0, 2.0],
    "a dog": [4.0, 4.0],
    "a photo of the chair": [8.0, 0.0],
    "a photo of a table": [0.0, 6.0],
    "a photo of the {chair}": [3.0, 5.0],
}


def expression(sentence, noun_phrase, *others):
    nouns = tuple(other.split()[-1] for other in others)
    return ParsedExpression(
        sentence, noun_phrase, "cat", others, nouns, Position.NONE, Relation.NONE
    )


class Encoder:
    def __init__(self):
        self.calls = []

    def __call__(self, texts):
        self.calls.append(list(texts))
        return torch.tensor([FEATURES[text] for text in texts]).reshape(len(texts), 2)


CAT = expression("the cat by the chair", "the cat", "the chair", "a table")
DOG = expression("a dog", "a dog")


def test_own_feature_is_half_sentence_and_half_noun_phrase():
    features = expression_features(Encoder(), [CAT], TextConfig())
    assert features.expression_SE.tolist() == [[0.5, 1.0]]


def test_share_of_the_sentence_is_the_configured_one():
    features = expression_features(Encoder(), [CAT], TextConfig(sentence_weight=0.25))
    assert features.expression_SE.tolist() == [[0.25, 1.5]]


def test_other_feature_is_the_mean_over_the_prompted_phrases():
    features = expression_features(Encoder(), [CAT], TextConfig())
    assert features.other_nouns_SE.tolist() == [[4.0, 3.0]]
    assert features.has_others == (True,)


def test_expression_without_other_nouns_says_so():
    features = expression_features(Encoder(), [DOG], TextConfig())
    assert features.has_others == (False,)
    assert features.other_nouns_SE.tolist() == [[0.0, 0.0]]
    assert features.expression_SE.tolist() == [[4.0, 4.0]]


def test_each_expression_keeps_its_own_others_among_many():
    features = expression_features(Encoder(), [DOG, CAT, DOG, CAT], TextConfig())
    assert features.other_nouns_SE.tolist() == [[0, 0], [4, 3], [0, 0], [4, 3]]
    assert features.expression_SE.tolist() == [[4, 4], [0.5, 1], [4, 4], [0.5, 1]]
    assert features.has_others == (False, True, False, True)


def test_all_texts_are_embedded_in_one_call():
    encoder = Encoder()
    expression_features(encoder, [DOG, CAT], TextConfig())
    assert len(encoder.calls) == 1


def test_braces_in_a_phrase_are_text():
    odd = expression("a dog", "a dog", "the {chair}")
    features = expression_features(Encoder(), [odd], TextConfig())
    assert features.other_nouns_SE.tolist() == [[3.0, 5.0]]


def test_no_expressions_give_no_features():
    features = expression_features(Encoder(), [], TextConfig())
    assert features.expression_SE.shape == features.other_nouns_SE.shape == (0, 2)
    assert features.has_others == ()
