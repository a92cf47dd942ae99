"""What an expression says: its noun phrase, other nouns, position word and relation word.

The rules read a spaCy ``Doc`` of the cleaned sentence; only its public attributes are used.

Source: HybridGL (CVPR 2025) section 3.3 and the behaviour of its program; quirk Q4 of
docs/quirks.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeVar

__all__ = ["Doc", "ParsedExpression", "Position", "Relation", "clean_sentence", "parse_expression"]

_Word = TypeVar("_Word")


class Position(Enum):
    """Where in the image the object is."""

    NONE = "none"
    LEFT = "left"
    RIGHT = "right"
    MIDDLE = "middle"
    UP = "up"
    DOWN = "down"


class Relation(Enum):
    """How the object stands to another one."""

    NONE = "none"
    LEFT = "left"
    RIGHT = "right"
    UP = "up"
    DOWN = "down"
    BIG = "big"
    SMALL = "small"
    WITHIN = "within"


@dataclass(frozen=True, slots=True)
class ParsedExpression:
    """All that the method reads off a sentence.

    Attributes:
        sentence: the cleaned sentence, the string that CLIP embeds.
        noun_phrase: the chunk of the head noun, or the whole sentence.
        head_noun: the head's text, or the whole sentence.
        other_noun_phrases: chunks of the other objects, in order.
        other_nouns: their root words.
        position: position word.
        relation: relation word.
    """

    sentence: str
    noun_phrase: str
    head_noun: str
    other_noun_phrases: tuple[str, ...]
    other_nouns: tuple[str, ...]
    position: Position
    relation: Relation


class Doc(Protocol):
    """The part of ``spacy.tokens.Doc`` that the rules read."""

    @property
    def text(self) -> str:
        """The string that was parsed."""

    @property
    def noun_chunks(self) -> Iterator[Any]:
        """Base noun phrases, from the parse."""

    def __iter__(self) -> Iterator[Any]:
        """Tokens in order."""


_POSITION_WORDS: Mapping[str, Position] = {
    "left": Position.LEFT,
    "right": Position.RIGHT,
    "middle": Position.MIDDLE,
    "between": Position.MIDDLE,
    "up": Position.UP,
    "top": Position.UP,
    "above": Position.UP,
    "down": Position.DOWN,
    "under": Position.DOWN,
    "bottom": Position.DOWN,
    "low": Position.DOWN,
}

_RELATION_WORDS: Mapping[str, Relation] = {
    "left": Relation.LEFT,
    "west": Relation.LEFT,
    "right": Relation.RIGHT,
    "east": Relation.RIGHT,
    "above": Relation.UP,
    "north": Relation.UP,
    "top": Relation.UP,
    "back": Relation.UP,
    "behind": Relation.UP,
    "below": Relation.DOWN,
    "south": Relation.DOWN,
    "under": Relation.DOWN,
    "front": Relation.DOWN,
    "bigger": Relation.BIG,
    "larger": Relation.BIG,
    "closer": Relation.BIG,
    "smaller": Relation.SMALL,
    "tinier": Relation.SMALL,
    "further": Relation.SMALL,
    "smallest": Relation.SMALL,
    "inside": Relation.WITHIN,
    "within": Relation.WITHIN,
    "contained": Relation.WITHIN,
}

_NOT_OBJECTS = (frozenset(_RELATION_WORDS) - {"smallest"}) | {"who", "what", "which", "middle"}
"""Chunks with these roots name no object."""

_PARTS_OF_THE_PICTURE = frozenset(
    {"part", "image", "side", "picture", "half", "region", "section", "photo"}
)
"""An other noun with one of these roots makes a relation word a position word."""


def clean_sentence(doc: Doc) -> str:
    """The string that is parsed for good and embedded.

    Args:
        doc: parse of the raw sentence, lower-cased.

    Returns:
        Tokens joined by one space, without those that are a single space.
    """
    return " ".join(token.text for token in doc if token.text != " ")


def parse_expression(doc: Doc, *, right_relation_never_matches: bool) -> ParsedExpression:
    """Apply the rules to a parsed sentence.

    Args:
        doc: parse of the cleaned sentence; an empty one gives empty strings.
        right_relation_never_matches: quirk Q4.
    """
    chunks = list(doc.noun_chunks)
    noun_phrase, head_noun = _noun_phrase(doc, chunks)
    others = [
        chunk
        for chunk in chunks
        if chunk.text != noun_phrase and chunk.root.text not in _NOT_OBJECTS
    ]
    other_nouns = tuple(chunk.root.text for chunk in others)
    relation = Relation.NONE
    if _PARTS_OF_THE_PICTURE.isdisjoint(other_nouns):
        words = _RELATION_WORDS
        if right_relation_never_matches:
            words = {word: r for word, r in words.items() if r is not Relation.RIGHT}
        relation = _nearest_to_start(doc, words, Relation.NONE)
    return ParsedExpression(
        sentence=doc.text,
        noun_phrase=noun_phrase,
        head_noun=head_noun,
        other_noun_phrases=tuple(chunk.text for chunk in others),
        other_nouns=other_nouns,
        position=_nearest_to_start(doc, _POSITION_WORDS, Position.NONE),
        relation=relation,
    )


def _noun_phrase(doc: Doc, chunks: list[Any]) -> tuple[str, str]:
    """Chunk and text of the last token that is its own head; the sentence where it has none."""
    chunk_of = {token.i: chunk for chunk in chunks for token in chunk}
    roots = [token for token in doc if token.head.i == token.i]
    if not roots:
        return doc.text, doc.text
    head = roots[-1]
    if head.i not in chunk_of:
        head = next(iter(head.children), head)
    if head.i not in chunk_of:
        return doc.text, doc.text
    return chunk_of[head.i].text, head.text


def _nearest_to_start(doc: Doc, words: Mapping[str, _Word], none: _Word) -> _Word:
    """Meaning of the word whose head comes first; the first such word wins a tie."""
    matches = [token for token in doc if token.text in words]
    if not matches:
        return none
    return words[min(matches, key=lambda token: token.head.i).text]
