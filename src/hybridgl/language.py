"""What an expression says: noun phrase, other nouns, position, relation, and its text features.

The rules read a spaCy ``Doc`` of the cleaned sentence; only its public attributes are used.

Source: HybridGL (CVPR 2025) sections 3.2 and 3.3 and the behaviour of its program; the ensemble of
texts is that of Global-Local CLIP (CVPR 2023); quirk Q4 of docs/quirks.md.
Shapes: S sentences, L texts, E embedding width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from hybridgl.config import TextConfig
from hybridgl.errors import SettingError
from hybridgl.store import Content, Store, cached
from hybridgl.timing import timer

if TYPE_CHECKING:
    from hybridgl.models import Models

__all__ = [
    "Doc",
    "ExpressionFeatures",
    "ParsedExpression",
    "Position",
    "Relation",
    "check_unicode",
    "clean_sentence",
    "expression_features",
    "parse_expression",
    "parse_sentences",
]

_Word = TypeVar("_Word")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


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

    def json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "position": self.position.value, "relation": self.relation.value}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Build an expression from what ``json`` returned."""
        return cls(
            sentence=fields["sentence"],
            noun_phrase=fields["noun_phrase"],
            head_noun=fields["head_noun"],
            other_noun_phrases=tuple(fields["other_noun_phrases"]),
            other_nouns=tuple(fields["other_nouns"]),
            position=Position(fields["position"]),
            relation=Relation(fields["relation"]),
        )


def check_unicode(sentence: str) -> None:
    """Refuse a sentence that no text encoder can read.

    Raises:
        SettingError: half of a character is in it.
    """
    if _LONE_SURROGATE.search(sentence):
        raise SettingError(
            f"Expected expressions in valid Unicode, got {sentence!r} with half of a character; "
            f"decode it again."
        )


class Doc(Protocol):
    """The part of ``spacy.tokens.Doc`` that the rules read."""

    @property
    def text(self) -> str:
        """Return the string that was parsed."""

    @property
    def noun_chunks(self) -> Iterator[Any]:
        """Return the base noun phrases of the parse."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the tokens in order."""


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

_PARTS_OF_THE_IMAGE = frozenset(
    {"part", "image", "side", "picture", "half", "region", "section", "photo"}
)
"""An other noun with one of these roots makes a relation word a position word."""


def clean_sentence(doc: Doc) -> str:
    """Return the string that is parsed for good and embedded.

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
    if _PARTS_OF_THE_IMAGE.isdisjoint(other_nouns):
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


def parse_sentences(
    models: Models,
    store: Store | None,
    sentences: Sequence[str],
    *,
    right_relation_never_matches: bool,
) -> list[ParsedExpression]:
    """Parse raw sentences of one image, through the store.

    The parses of an image are an entry, so that a machine without the parser can go on where
    another one has begun.

    Args:
        models: hold the parser.
        store: keeps the parses; None parses every time.
        sentences: raw.
        right_relation_never_matches: quirk Q4.
    """
    distinct = list(dict.fromkeys(sentences))

    def compute() -> Content:
        expressions = models.parser.parse(
            distinct, right_relation_never_matches=right_relation_never_matches
        )
        return {}, {"expressions": [expression.json() for expression in expressions]}

    inputs = {
        "parser": models.sha256("parser"),
        "right_relation_never_matches": right_relation_never_matches,
        "sentences": distinct,
    }
    with timer("parse"):
        entry = cached(store, "parses", inputs, compute)
    parsed = map(ParsedExpression.from_json, entry.meta["expressions"])
    expression_of = dict(zip(distinct, parsed, strict=True))
    return [expression_of[sentence] for sentence in sentences]


def _noun_phrase(doc: Doc, chunks: list[Any]) -> tuple[str, str]:
    """Return chunk and text of the last token that is its own head, or the sentence twice."""
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
    """Return the value of the matching token whose head has the smallest index (ties: first)."""
    matches = [token for token in doc if token.text in words]
    if not matches:
        return none
    return words[min(matches, key=lambda token: token.head.i).text]


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
    sentence_SE, phrase_SE, other_LE = features.split([len(sentences), len(phrases), len(others)])
    counts = [len(expression.other_noun_phrases) for expression in expressions]
    means = [
        group.mean(dim=0) if len(group) else features.new_zeros(features.shape[1])
        for group in other_LE.split(counts)
    ]
    return ExpressionFeatures(
        expression_SE=config.sentence_weight * sentence_SE
        + (1 - config.sentence_weight) * phrase_SE,
        other_nouns_SE=torch.stack(means) if means else features.new_zeros(0, features.shape[1]),
        has_others=tuple(count > 0 for count in counts),
    )
