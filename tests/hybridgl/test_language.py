"""Rules on parses written by hand, whose words stand here a second time; text features by hand."""

from __future__ import annotations

import pytest
import spacy
import torch
from spacy.tokens import Doc

from hybridgl.config import TextConfig
from hybridgl.language import (
    ParsedExpression,
    Position,
    Relation,
    clean_sentence,
    expression_features,
    parse_expression,
)

VOCABULARY = spacy.blank("en").vocab

POSITION_WORDS = [
    *[(word, "left") for word in ("left",)],
    *[(word, "right") for word in ("right",)],
    *[(word, "middle") for word in ("middle", "between")],
    *[(word, "up") for word in ("up", "top", "above")],
    *[(word, "down") for word in ("down", "under", "bottom", "low")],
]
RELATION_WORDS = [
    *[(word, "left") for word in ("left", "west")],
    *[(word, "right") for word in ("right", "east")],
    *[(word, "up") for word in ("above", "north", "top", "back", "behind")],
    *[(word, "down") for word in ("below", "south", "under", "front")],
    *[(word, "big") for word in ("bigger", "larger", "closer")],
    *[(word, "small") for word in ("smaller", "tinier", "further", "smallest")],
    *[(word, "within") for word in ("inside", "within", "contained")],
]
NO_OBJECTS = [
    *("left", "west", "right", "east", "above", "north", "top", "back", "behind", "below", "south"),
    *("under", "front", "bigger", "larger", "closer", "smaller", "tinier", "further", "inside"),
    *("within", "contained", "who", "what", "which", "middle"),
]
PARTS_OF_THE_IMAGE = ["part", "image", "side", "picture", "half", "region", "section", "photo"]


def doc(*tokens):
    """A parse of ``word/POS/dep/head`` tokens, heads by their index."""
    words, pos, deps, heads = zip(*(token.split("/") for token in tokens), strict=True)
    spaces = [index + 1 < len(words) for index in range(len(words))]
    return Doc(
        VOCABULARY, words, spaces, heads=[int(head) for head in heads], deps=deps, pos=list(pos)
    )


def parse(*tokens, right_never=True):
    return parse_expression(doc(*tokens), right_relation_never_matches=right_never)


CAT_LEFT_OF_CHAIR = (
    "the/DET/det/1",
    "cat/NOUN/ROOT/1",
    "left/ADV/advmod/1",
    "of/ADP/prep/2",
    "the/DET/det/6",
    "red/ADJ/amod/6",
    "chair/NOUN/pobj/3",
)


def with_relation(word):
    """ "cat WORD chair": the word depends on the first noun, the chair on the word."""
    return ("cat/NOUN/ROOT/0", f"{word}/ADP/prep/0", "chair/NOUN/pobj/1")


def test_everything_is_read_off_a_whole_expression():
    parsed = parse(*CAT_LEFT_OF_CHAIR)
    assert parsed.sentence == "the cat left of the red chair"
    assert parsed.noun_phrase == "the cat"
    assert parsed.head_noun == "cat"
    assert parsed.other_noun_phrases == ("the red chair",)
    assert parsed.other_nouns == ("chair",)
    assert parsed.position is Position.LEFT
    assert parsed.relation is Relation.LEFT


def test_cleaning_drops_tokens_that_are_a_space_and_joins_by_one():
    words = ["the", " ", "red", "  ", "cat", "'s", " "]
    assert clean_sentence(Doc(VOCABULARY, words)) == "the red    cat 's"


def test_last_of_several_roots_is_the_head():
    parsed = parse("dogs/NOUN/ROOT/0", "red/ADJ/amod/2", "cats/NOUN/ROOT/2")
    assert (parsed.noun_phrase, parsed.head_noun) == ("red cats", "cats")
    assert parsed.other_noun_phrases == ("dogs",)


def test_head_outside_a_chunk_hands_over_to_its_first_child():
    parsed = parse("a/DET/det/1", "cat/NOUN/nsubj/2", "sleeps/VERB/ROOT/2", "here/NOUN/npadvmod/2")
    assert (parsed.noun_phrase, parsed.head_noun) == ("a cat", "cat")


def test_first_child_outside_a_chunk_leaves_the_whole_sentence():
    parsed = parse("now/ADV/advmod/2", "cats/NOUN/nsubj/2", "sleep/VERB/ROOT/2")
    assert (parsed.noun_phrase, parsed.head_noun) == ("now cats sleep",) * 2
    assert parsed.other_noun_phrases == ("cats",)


def test_head_without_chunk_and_children_leaves_the_whole_sentence():
    parsed = parse("cats/NOUN/nsubj/1", "sleep/VERB/ROOT/1", "left/ADJ/ROOT/2")
    assert (parsed.noun_phrase, parsed.head_noun) == ("cats sleep left",) * 2


def test_empty_expression_has_empty_strings_and_no_words():
    parsed = parse_expression(Doc(VOCABULARY, []), right_relation_never_matches=True)
    assert (parsed.sentence, parsed.noun_phrase, parsed.head_noun) == ("", "", "")
    assert (parsed.other_noun_phrases, parsed.other_nouns) == ((), ())
    assert (parsed.position, parsed.relation) == (Position.NONE, Relation.NONE)


def test_chunk_with_the_text_of_the_noun_phrase_is_no_other_noun():
    parsed = parse(
        "cat/NOUN/ROOT/0", "by/ADP/prep/0", "cat/NOUN/pobj/1", "by/ADP/prep/2", "dog/NOUN/pobj/3"
    )
    assert parsed.other_noun_phrases == ("dog",)


@pytest.mark.parametrize("word", NO_OBJECTS)
def test_chunk_with_a_directional_root_is_no_other_noun(word):
    parsed = parse("cat/NOUN/ROOT/0", "on/ADP/prep/0", "the/DET/det/3", f"{word}/NOUN/pobj/1")
    assert parsed.other_noun_phrases == ()
    assert parsed.other_nouns == ()


@pytest.mark.parametrize("word", ["smallest", "between", "bottom", "up", "low", "chair"])
def test_chunk_with_any_other_root_is_an_other_noun(word):
    parsed = parse("cat/NOUN/ROOT/0", "on/ADP/prep/0", "the/DET/det/3", f"{word}/NOUN/pobj/1")
    assert parsed.other_noun_phrases == (f"the {word}",)
    assert parsed.other_nouns == (word,)


@pytest.mark.parametrize(("word", "position"), POSITION_WORDS)
def test_position_words(word, position):
    assert parse(*with_relation(word)).position.value == position


@pytest.mark.parametrize(
    "word", [word for word, _ in RELATION_WORDS if word not in dict(POSITION_WORDS)]
)
def test_other_relation_words_are_no_position(word):
    assert parse(*with_relation(word)).position is Position.NONE


@pytest.mark.parametrize(("word", "relation"), RELATION_WORDS)
def test_relation_words_once_right_matches(word, relation):
    assert parse(*with_relation(word), right_never=False).relation.value == relation


@pytest.mark.parametrize(("word", "relation"), RELATION_WORDS)
def test_right_and_east_alone_never_match_in_the_reference(word, relation):
    expected = "none" if relation == "right" else relation
    assert parse(*with_relation(word), right_never=True).relation.value == expected


@pytest.mark.parametrize(
    "word", ["up", "down", "low", "middle", "between", "bottom", "biggest", "beside"]
)
def test_other_words_are_no_relation(word):
    assert parse(*with_relation(word), right_never=False).relation is Relation.NONE


def test_right_that_does_not_match_leaves_the_next_word_to_win():
    tokens = (
        "right/ADJ/amod/1",
        "cat/NOUN/ROOT/1",
        "under/ADP/prep/1",
        "chair/NOUN/pobj/2",
    )
    assert parse(*tokens, right_never=True).relation is Relation.DOWN
    assert parse(*tokens, right_never=False).relation is Relation.RIGHT
    assert parse(*tokens).position is Position.RIGHT


@pytest.mark.parametrize("word", PARTS_OF_THE_IMAGE)
def test_other_noun_that_is_a_part_of_the_image_cancels_the_relation(word):
    tokens = (
        "cat/NOUN/ROOT/0",
        "left/ADJ/prep/0",
        "chair/NOUN/pobj/1",
        "in/ADP/prep/0",
        f"{word}/NOUN/pobj/3",
    )
    parsed = parse(*tokens)
    assert parsed.relation is Relation.NONE
    assert parsed.position is Position.LEFT


@pytest.mark.parametrize("word", PARTS_OF_THE_IMAGE)
def test_part_of_the_image_as_the_noun_itself_cancels_nothing(word):
    parsed = parse(f"{word}/NOUN/ROOT/0", "left/ADJ/prep/0", "chair/NOUN/pobj/1")
    assert parsed.relation is Relation.LEFT


def test_word_whose_head_comes_first_wins():
    parsed = parse(
        "left/ADJ/amod/1",
        "chair/NOUN/nsubj/1",
        "top/ADJ/amod/0",
        "right/ADJ/amod/1",
    )
    assert parsed.position is Position.UP
    assert parsed.relation is Relation.UP


def test_first_of_words_with_the_same_head_wins():
    parsed = parse("cat/NOUN/ROOT/0", "top/ADJ/amod/0", "left/ADJ/amod/0")
    assert parsed.position is Position.UP
    assert parsed.relation is Relation.UP


def test_position_and_relation_are_chosen_apart():
    parsed = parse(
        "cat/NOUN/ROOT/0",
        "bigger/ADJ/amod/0",
        "than/ADP/prep/1",
        "low/ADJ/amod/4",
        "dog/NOUN/pobj/2",
    )
    assert parsed.position is Position.DOWN
    assert parsed.relation is Relation.BIG


def test_words_match_in_lower_case_as_a_whole_only():
    parsed = parse(
        "cat/NOUN/ROOT/0", "Left/ADJ/amod/0", "leftmost/ADJ/amod/0", "topmost/ADJ/amod/0"
    )
    assert parsed.position is Position.NONE
    assert parsed.relation is Relation.NONE


# Text features, with an encoder whose features can be told by hand

FEATURES = {
    "the cat by the chair": [1.0, 0.0],
    "the cat": [0.0, 2.0],
    "a dog": [4.0, 4.0],
    "a photo of the chair": [8.0, 0.0],
    "a photo of a table": [0.0, 6.0],
    "a photo of the {chair}": [3.0, 5.0],
}


def parsed(sentence, noun_phrase, *others):
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


CAT = parsed("the cat by the chair", "the cat", "the chair", "a table")
DOG = parsed("a dog", "a dog")


def test_feature_is_half_sentence_and_half_noun_phrase():
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
    odd = parsed("a dog", "a dog", "the {chair}")
    features = expression_features(Encoder(), [odd], TextConfig())
    assert features.other_nouns_SE.tolist() == [[3.0, 5.0]]


def test_no_expressions_give_no_features():
    features = expression_features(Encoder(), [], TextConfig())
    assert features.expression_SE.shape == features.other_nouns_SE.shape == (0, 2)
    assert features.has_others == ()
