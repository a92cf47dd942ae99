"""Nouns and scores of captions by hand; those of the released program are golden vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc

from hybridgl.config import Profile
from pseudo_ris.config import PseudoQuirks
from pseudo_ris.distinctiveness import caption_noun, caption_scores

REFERENCE, CORRECTED = (PseudoQuirks.of(profile) for profile in Profile)


@pytest.fixture(scope="module")
def parse_of():
    vocabulary = spacy.blank("en").vocab

    def parse(words, heads, deps, pos):
        return Doc(vocabulary, words.split(), heads=heads, deps=deps.split(), pos=pos.split())

    return parse


def test_noun_is_looked_for_beyond_the_first_child_but_for_quirk_p21(parse_of):
    """ "sitting on a bench, a man": neither the head nor its first child lies in a chunk."""
    doc = parse_of(
        "sitting quietly a man",
        [0, 0, 3, 0],
        "ROOT advmod det nsubj",
        "VERB ADV DET NOUN",
    )
    released = caption_noun(doc, "sitting quietly a man ", REFERENCE)
    assert (released.head_noun, released.found) == ("sitting quietly a man ", False)
    assert released.prompt == "a photo of a sitting quietly a man "
    corrected = caption_noun(doc, "sitting quietly a man ", CORRECTED)
    assert (corrected.head_noun, corrected.noun_phrase) == ("man", "a man")


@pytest.mark.parametrize("quirks", [REFERENCE, CORRECTED])
def test_caption_without_any_noun_is_its_own_noun(parse_of, quirks):
    doc = parse_of("running", [0], "ROOT", "VERB")
    noun = caption_noun(doc, "running ", quirks)
    assert (noun.head_noun, noun.found) == ("running ", False)
    assert not caption_noun(parse_of("", [], "", ""), "", quirks).found


def test_distinctive_is_what_fits_no_other_mask_as_well():
    caption_NS = np.array([[20.0, 20.0], [10.0, 20.0], [5.0, 30.0]])
    noun_NS = np.array([[20.0, 20.0], [20.0, 30.0], [30.0, 10.0]])
    scores = caption_scores(caption_NS, noun_NS, 0, REFERENCE)
    assert scores.distinctiveness.tolist() == [400 / 200, 400 / 600]
    assert scores.uniqueness.tolist() == [20 / 10, 20 / 30]
    assert scores.correctness.tolist() == [20, 20]
    alone = caption_scores(caption_NS[:1], noun_NS[:1], 0, REFERENCE)
    assert alone.distinctiveness.tolist() == [20, 20]


def test_negative_similarities_multiply_by_quirk_p24():
    caption_NS, noun_NS = np.array([[-2.0], [1.0]]), np.array([[-3.0], [2.0]])
    assert caption_scores(caption_NS, noun_NS, 0, REFERENCE).distinctiveness == 3
    assert caption_scores(caption_NS, noun_NS, 0, CORRECTED).distinctiveness < 1e-4
    below = replace(REFERENCE, negative_scores_multiply=False)
    assert caption_scores(caption_NS, noun_NS, 1, below).distinctiveness > 1e4
