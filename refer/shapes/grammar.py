"""Expressions that refer to exactly one object of a scene, with the parse of each.

A *template* is a sentence with its dependency tree written beside the words. Its slots are filled
with descriptions ("small blue star") of a target ``T`` and of other objects ``A`` and ``B``. A
meaning is admitted only when it is true of the target and clearly false of every other object:
where a person could hesitate (two centres less than 12 pixels apart, sizes within 20 %), the
answer is "unclear" and the meaning is not used.

Geometry is that of the visible boxes: what a viewer sees, and what a segmenter finds.

Template notation: ``word>head:dep`` is a word, its head (another word of the template, or a slot)
and its dependency label; ``T`` alone is the root; ``the`` is the article of the next noun and
``the?`` an article that people leave out. Labels are those of spaCy's English models (ClearNLP),
tags those of the Penn Treebank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from refer.shapes.scene import COLORS, SHAPES, SIZES, Scene, SceneObject
from refer.shapes.words import (
    COLOR_WORDS,
    GENERIC_NOUNS,
    SHAPE_NOUNS,
    SIZE_WORDS,
    SMALL_CIRCLE_NOUN,
)

__all__ = ["KINDS", "POS_OF_TAG", "Expression", "expressions_for", "sample_phrase"]

KINDS = (
    "attributes",
    "position:left",
    "position:right",
    "position:middle",
    "position:up",
    "position:down",
    "size",
    "relation:left",
    "relation:right",
    "relation:up",
    "relation:down",
    "relation:bigger",
    "relation:smaller",
    "relation:within",
)
"""What an expression tells its object by; ``expressions_for`` writes these kinds only."""

MARGIN = 12.0
"""Least distance, in pixels, at which one centre counts as left of or above another."""

SIZE_RATIO = 1.2
"""Least ratio, of radii and of box areas, at which one object counts as bigger than another."""


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression and the gold parse of its cleaned text.

    Attributes:
        kind: one of ``KINDS``; ``sample_phrase`` also gives "other".
        raw: the text as somebody might type it: any case, articles missing, spaces doubled.
        words: tokens of the cleaned text; joined by one space they are that text.
        heads: absolute index of each token's head; the root is its own head.
        deps: dependency labels.
        pos: universal parts of speech.
        tags: Penn Treebank tags.
    """

    kind: str
    raw: str
    words: tuple[str, ...]
    heads: tuple[int, ...]
    deps: tuple[str, ...]
    pos: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def text(self) -> str:
        """Join the cleaned text: lower case, one space between tokens."""
        return " ".join(self.words)


# The words of the templates.

POS_OF_TAG = {
    "DT": "DET",
    "JJ": "ADJ",
    "JJR": "ADJ",
    "JJS": "ADJ",
    "NN": "NOUN",
    "IN": "ADP",
    "RB": "ADV",
    "RBR": "ADV",
    "VBN": "VERB",
    "VBG": "VERB",
    "VBZ": "AUX",
    "WDT": "PRON",
    "CC": "CCONJ",
    ".": "PUNCT",
}
"""Universal part of speech of each Penn Treebank tag that the grammar uses."""

_TAG_OF_DEP = {
    "amod": "JJ",
    "acomp": "JJ",
    "acl": "VBN",
    "advmod": "RB",
    "prep": "IN",
    "pobj": "NN",
    "conj": "NN",
    "dobj": "NN",
    "cc": "CC",
    "nsubj": "WDT",
    "relcl": "VBZ",
    "aux": "VBZ",
    "det": "DT",
    "punct": ".",
    "ROOT": "NN",
}
_TAG_OF_WORD = {
    **dict.fromkeys(("bigger", "larger", "smaller", "tinier", "closer", "further"), "JJR"),
    **dict.fromkeys(("biggest", "largest", "smallest", "most"), "JJS"),
    **dict.fromkeys(("holding", "wearing", "standing", "sitting"), "VBG"),
}

_Templates = Mapping[str, float]
"""Templates and their relative frequencies."""


def _sided(word: str) -> dict[str, float]:
    """List ways to say that something is on the left or on the right."""
    return {
        f"the? {word}>T:amod T": 3,
        f"the? T on>T:prep {word}>on:pobj": 2,
        f"the? T on>T:prep the {word}>on:pobj": 3,
        f"the? T to>T:prep the {word}>to:pobj": 0.5,
        f"the? T on>T:prep the? far>{word}:amod {word}>on:pobj": 0.4,
        f"the? T on>T:prep the? {word}>side:amod side>on:pobj": 0.7,
        f"the? T on>T:prep the {word}>side:amod side>on:pobj of>side:prep the? "
        "picture>of:pobj": 0.3,
        f"the? {word}>most:advmod most>T:amod T": 1,
        f"the? T {word}>T:advmod": 0.5,
    }


def _vertical(word: str) -> dict[str, float]:
    """List ways to say that something is at the top or at the bottom."""
    return {
        f"the? {word}>T:amod T": 4,
        f"the? T at>T:prep the? {word}>at:pobj": 3,
        f"the? T on>T:prep the? {word}>on:pobj": 2,
        f"the? T at>T:prep the {word}>at:pobj of>{word}:prep the? picture>of:pobj": 0.4,
        f"the? T near>T:prep the? {word}>near:pobj": 0.3,
    }


def _corner(vertical: str, side: str) -> dict[str, float]:
    return {
        f"the? {vertical}>T:amod {side}>T:amod T": 3,
        f"the? T in>T:prep the? {vertical}>corner:amod {side}>corner:amod corner>in:pobj": 1,
        f"the? T {vertical}>{side}:amod {side}>T:advmod": 0.5,
    }


def _beside(word: str, compass: str) -> dict[str, float]:
    return {
        f"the? T {word}>T:advmod of>{word}:prep the? A>of:pobj": 4,
        f"the? T to>T:prep the? {word}>to:pobj of>{word}:prep the? A>of:pobj": 4,
        f"the? T on>T:prep the? {word}>on:pobj of>{word}:prep the? A>of:pobj": 2,
        f"the? T which>is:nsubj is>T:relcl {word}>is:advmod of>{word}:prep the? A>of:pobj": 0.4,
        f"the? T {compass}>T:advmod of>{compass}:prep the? A>of:pobj": 0.2,
    }


def _before_noun(*words: str) -> dict[str, float]:
    return {f"the? {word}>T:amod T": 1.0 for word in words}


def _with_preposition(**weights: float) -> dict[str, float]:
    return {f"the? T {word}>T:prep the? A>{word}:pobj": w for word, w in weights.items()}


def _compared(*words: str) -> dict[str, float]:
    plain = {f"the? T {w}>T:amod than>{w}:prep the? A>than:pobj": 4.0 for w in words}
    clause = "the? T which>is:nsubj is>T:relcl {w}>is:acomp than>{w}:prep the? A>than:pobj"
    return plain | {clause.format(w=w): 0.7 for w in words}


_TEMPLATES: dict[str, _Templates] = {
    "attributes": {"the? T": 1.0},
    "position:left": _sided("left"),
    "position:right": _sided("right"),
    "position:middle": {
        "the? middle>T:amod T": 4,
        "the? T in>T:prep the? middle>in:pobj": 4,
        "the? T in>T:prep the middle>in:pobj of>middle:prep the? picture>of:pobj": 0.4,
    },
    "between": {
        "the? T between>T:prep the? A>between:pobj and>A:cc the? B>A:conj": 1,
        "the? T in>T:prep between>in:prep the? A>between:pobj and>A:cc the? B>A:conj": 0.2,
    },
    "position:up": _vertical("top") | {"the? T up>T:prep top>up:pobj": 0.5},
    "position:down": _vertical("bottom")
    | {"the? T down>T:advmod low>down:advmod": 0.4, "the? low>T:amod T": 0.3},
    "corner:top left": _corner("top", "left"),
    "corner:top right": _corner("top", "right"),
    "corner:bottom left": _corner("bottom", "left"),
    "corner:bottom right": _corner("bottom", "right"),
    "bigger of two": _before_noun("bigger", "larger"),
    "smaller of two": _before_noun("smaller", "tinier"),
    "biggest": _before_noun("biggest", "largest"),
    "smallest": _before_noun("smallest"),
    "relation:left": _beside("left", "west"),
    "relation:right": _beside("right", "east"),
    "relation:up": _with_preposition(above=5.0)
    | {
        "the? T on>T:prep top>on:pobj of>top:prep the? A>of:pobj": 2,
        "the? T which>is:nsubj is>T:relcl above>is:prep the? A>above:pobj": 0.4,
    },
    "relation:down": _with_preposition(below=3.0, under=4.0)
    | {"the? T which>is:nsubj is>T:relcl below>is:prep the? A>below:pobj": 0.3},
    "relation:bigger": _compared("bigger", "larger"),
    "relation:smaller": _compared("smaller", "tinier"),
    "relation:within": _with_preposition(inside=4.0, within=2.0)
    | {
        "the? T contained>T:acl in>contained:prep the? A>in:pobj": 1,
        "the? T inside>T:prep of>inside:prep the? A>of:pobj": 1,
    },
}
"""Templates of each meaning. The keys that are no kind belong to the kind in ``_KIND_OF``."""

_KIND_OF = {
    "between": "position:middle",
    "corner:top left": "position:up",
    "corner:top right": "position:up",
    "corner:bottom left": "position:down",
    "corner:bottom right": "position:down",
    "bigger of two": "size",
    "smaller of two": "size",
    "biggest": "size",
    "smallest": "size",
}

_GROUPS: dict[str, tuple[float, dict[str, float]]] = {
    "attributes": (0.3, {"attributes": 1.0}),
    "position": (
        0.3,
        {
            **dict.fromkeys([kind for kind in KINDS if kind.startswith("position")], 1.0),
            "position:middle": 2.5,
            "between": 0.2,
            **dict.fromkeys([name for name in _TEMPLATES if name.startswith("corner")], 0.1),
        },
    ),
    "size": (
        0.22,
        {"bigger of two": 1.0, "smaller of two": 1.0, "smallest": 0.5, "biggest": 0.2},
    ),
    "relation": (
        0.3,
        {
            **dict.fromkeys(["relation:left", "relation:right", "relation:up"], 1.0),
            **dict.fromkeys(["relation:down", "relation:bigger"], 1.0),
            "relation:smaller": 2.0,
        },
    ),
    "within": (0.8, {"relation:within": 1.0}),
}
"""Weight of each group of meanings, and of the meanings within it.

What few scenes allow (sizes told by comparison, a ring with something inside) weighs more than
its share should be.
"""


# What the scene lets one say.


@dataclass(frozen=True, slots=True)
class _Description:
    """Attributes that a noun with its adjectives tells; ``None`` where it is silent."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None

    def fits(self, item: SceneObject) -> bool:
        return (
            self.shape in (None, item.shape)
            and self.color in (None, item.color)
            and self.size in (None, item.size)
        )

    @property
    def length(self) -> int:
        return sum(part is not None for part in (self.shape, self.color, self.size))


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What is said of the target; each anchor is described so that only one object fits."""

    name: str
    target: _Description
    anchors: tuple[_Description, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """A scene as a viewer measures it: visible boxes and their centres, in pixels."""

    objects: tuple[SceneObject, ...]
    hw: tuple[int, int]
    boxes_xyxy: NDArray[np.float64]
    centers_xy: NDArray[np.float64]

    @classmethod
    def of(cls, scene: Scene) -> _View:
        boxes = []
        for index in range(len(scene.objects)):
            mask_HW = scene.mask_HW(index)
            rows, cols = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
            boxes.append((cols[0], rows[0], cols[-1] + 1, rows[-1] + 1))
        boxes_xyxy = np.array(boxes, dtype=np.float64)
        height, width = scene.labels_HW.shape
        centers_xy = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
        return cls(scene.objects, (height, width), boxes_xyxy, centers_xy)

    def matching(self, description: _Description) -> list[int]:
        return [i for i, item in enumerate(self.objects) if description.fits(item)]

    def box_area(self, index: int) -> float:
        left, top, right, bottom = self.boxes_xyxy[index]
        return float((right - left) * (bottom - top))


_Verdict = bool | None
"""True, False, or None where a viewer could hesitate."""


def _clearly(value: float, yes_from: float, no_below: float) -> _Verdict:
    """Decide: True from ``yes_from`` on, False at or below ``no_below``, unclear between."""
    if value >= yes_from:
        return True
    return False if value <= no_below else None


def _all(verdicts: Iterable[_Verdict]) -> _Verdict:
    """Combine by "and": False if any is False, else unclear if any is unclear."""
    known = list(verdicts)
    if False in known:
        return False
    return None if None in known else True


_DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (0, -1),
    "right": (0, 1),
    "up": (1, -1),
    "down": (1, 1),
}
"""Axis (0: x, 1: y) and sign of each direction; y grows downwards."""


def _beyond(view: _View, direction: str, index: int, other: int) -> _Verdict:
    axis, sign = _DIRECTIONS[direction]
    return _clearly(
        sign * float(view.centers_xy[index, axis] - view.centers_xy[other, axis]), MARGIN, 0.0
    )


def _bigger(view: _View, index: int, other: int) -> _Verdict:
    ratios = (
        view.objects[index].radius / view.objects[other].radius,
        view.box_area(index) / view.box_area(other),
    )
    if min(ratios) >= SIZE_RATIO:
        return True
    return False if max(ratios) <= 1 / SIZE_RATIO else None


def _within(view: _View, index: int, ring: int) -> _Verdict:
    """Decide whether an object is inside a ring: its box well within the ring's box.

    It is outside when its centre is out of that box.
    """
    left, top, right, bottom = view.boxes_xyxy[ring]
    x, y = view.centers_xy[index]
    if not (left < x < right and top < y < bottom):
        return False
    inset = 0.1 * (right - left)
    x0, y0, x1, y1 = view.boxes_xyxy[index]
    inside = x0 >= left + inset and y0 >= top + inset and x1 <= right - inset
    return True if inside and y1 <= bottom - inset else None


def _between(view: _View, index: int, first: int, second: int) -> _Verdict:
    """Decide whether an object is near the middle part of the line that joins two centres."""
    start, end, point = (view.centers_xy[i] for i in (first, second, index))
    line, offset = end - start, point - start
    length = float(np.hypot(*line)) + 1e-9
    along = float(offset @ line) / length**2
    aside = abs(float(line[0] * offset[1] - line[1] * offset[0])) / length**2
    if 0.25 <= along <= 0.75 and aside <= 0.2:
        return True
    return False if not 0.05 <= along <= 0.95 or aside >= 0.5 else None


def _extreme(view: _View, direction: str, index: int, rivals: Sequence[int]) -> _Verdict:
    """Decide whether it is farthest of its like in a direction, in that half of the image."""
    axis, sign = _DIRECTIONS[direction]
    beyond = _all(_beyond(view, direction, index, other) for other in rivals if other != index)
    middle = view.hw[1 - axis] / 2
    in_half = sign * (float(view.centers_xy[index, axis]) - middle) >= 0
    return None if beyond and not in_half else beyond


def _central(view: _View, index: int, rivals: Sequence[int]) -> _Verdict:
    """Decide whether it is in the middle of the image; of three or more, not the outermost."""
    height, width = view.hw
    x, y = view.centers_xy[index]
    verdict = _all(
        (
            _clearly(-abs(x - width / 2), -width / 6, -width / 6 - MARGIN),
            _clearly(-abs(y - height / 2), -height / 4, -height / 4 - MARGIN),
        )
    )
    if verdict and len(rivals) > 2:
        others = [view.centers_xy[other, 0] for other in rivals if other != index]
        return True if min(others) <= x - MARGIN and max(others) >= x + MARGIN else None
    return verdict


def _cornered(view: _View, corner: str, index: int) -> _Verdict:
    vertical, side = corner.split()
    height, width = view.hw
    x, y = (float(value) for value in view.centers_xy[index])
    across = (width / 2 - x) if side == "left" else (x - width / 2)
    along = (height / 2 - y) if vertical == "top" else (y - height / 2)
    return _all((_clearly(across, MARGIN, -MARGIN), _clearly(along, MARGIN, -MARGIN)))


_RELATIONS: dict[str, Callable[..., _Verdict]] = {
    **{
        f"relation:{direction}": lambda view, i, j, direction=direction: _beyond(
            view, direction, i, j
        )
        for direction in _DIRECTIONS
    },
    "relation:bigger": _bigger,
    "relation:smaller": lambda view, i, j: _bigger(view, j, i),
    "relation:within": _within,
    "between": _between,
}


def _verdict(
    view: _View, name: str, index: int, rivals: Sequence[int], anchors: Sequence[int]
) -> _Verdict:
    """Decide whether a meaning holds of one object, one of ``rivals``: all that are like it."""
    others = [other for other in rivals if other != index]
    group, _, detail = name.partition(":")
    if name == "attributes":
        return True
    if name in _RELATIONS:
        return False if index in anchors else _RELATIONS[name](view, index, *anchors)
    if group == "corner":
        return _cornered(view, detail, index)
    if detail == "middle":
        return _central(view, index, rivals)
    if group == "position":
        return _extreme(view, detail, index, rivals)
    if name in ("bigger of two", "biggest"):
        return _all(_bigger(view, index, other) for other in others)
    return _all(_bigger(view, other, index) for other in others)


def _refers_to(view: _View, meaning: _Meaning, index: int) -> bool:
    """Decide whether the meaning is true of this object and clearly false of every other."""
    anchors = [view.matching(anchor)[0] for anchor in meaning.anchors]
    rivals = view.matching(meaning.target)
    if meaning.name.endswith("of two") and len(rivals) != 2:
        return False
    wanted = {other: other == index for other in rivals}
    return index in wanted and all(
        _verdict(view, meaning.name, other, rivals, anchors) is expected
        for other, expected in wanted.items()
    )


def _descriptions(item: SceneObject) -> list[_Description]:
    """List every description that fits the object, the empty one included."""
    return [
        _Description(shape, color, size)
        for shape in (None, item.shape)
        for color in (None, item.color)
        for size in (None, item.size)
    ]


def _names(view: _View, index: int) -> list[_Description]:
    """List descriptions with a shape that single out the object; wordy ones only if needed."""
    names = [
        description
        for description in _descriptions(view.objects[index])
        if description.shape is not None and view.matching(description) == [index]
    ]
    return [d for d in names if d.length < 3] or names


def _anchor_sets(view: _View, name: str, index: int) -> list[tuple[int, ...]]:
    """List the objects by which a relation of ``index`` could be expressed."""
    others = [other for other in range(len(view.objects)) if other != index]
    if name == "between":
        return list(permutations(others, 2))
    if name == "relation:within":
        others = [other for other in others if view.objects[other].shape == "ring"]
    if name in _RELATIONS:
        return [(other,) for other in others]
    return [()]


def _meanings(view: _View, index: int, name: str) -> list[_Meaning]:
    """Find all meanings of one name that refer to the object."""
    names_of = [_names(view, other) for other in range(len(view.objects))]
    found = []
    for anchors in _anchor_sets(view, name, index):
        if name in _RELATIONS and _RELATIONS[name](view, index, *anchors) is not True:
            continue
        if not _natural(view, name, index, anchors):
            continue
        names = list(product(*(names_of[anchor] for anchor in anchors)))
        for target in _descriptions(view.objects[index]):
            meanings = [_Meaning(name, target, chosen) for chosen in names]
            if (
                meanings
                and _worth_saying(view, meanings[0])
                and _refers_to(view, meanings[0], index)
            ):
                found += meanings
    return found


def _natural(view: _View, name: str, index: int, anchors: Sequence[int]) -> bool:
    """Decide whether people would relate these: mostly in that direction from there."""
    direction = name.partition(":")[2]
    if direction not in _DIRECTIONS or not anchors:
        return True
    axis, _ = _DIRECTIONS[direction]
    offset = np.abs(view.centers_xy[index] - view.centers_xy[anchors[0]])
    return bool(offset[axis] >= 0.7 * offset[1 - axis])


def _worth_saying(view: _View, meaning: _Meaning) -> bool:
    """Decide whether the words beyond the description are needed, and it is not empty."""
    if meaning.name == "attributes":
        return meaning.target.length > 0
    if _KIND_OF.get(meaning.name) == "size" and (
        meaning.target.size is not None or meaning.target.length == 0
    ):
        return False
    return len(view.matching(meaning.target)) > 1


# From meaning to words.


@dataclass(frozen=True, slots=True)
class _Noun:
    """A noun with the adjectives before it."""

    adjectives: tuple[str, ...]
    noun: str


def _draw(rng: np.random.Generator, options: Sequence[str], first: float = 0.7) -> str:
    """Draw the first option with probability ``first``, else any."""
    return options[0 if rng.random() < first else int(rng.integers(len(options)))]


def _weighted(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    total = np.cumsum(list(weights.values()))
    return list(weights)[int(np.searchsorted(total, rng.random() * total[-1], side="right"))]


def _name(rng: np.random.Generator, description: _Description) -> _Noun:
    """Find words for a description; a small circle may be a dot, whose size goes unsaid."""
    size, shape = description.size, description.shape
    if shape is None:
        noun = _draw(rng, GENERIC_NOUNS, 0.4)
    elif (shape, size) == ("circle", "small") and rng.random() < 0.5:
        noun, size = SMALL_CIRCLE_NOUN, None
    else:
        noun = _draw(rng, SHAPE_NOUNS[shape])
    adjectives = [] if size is None else [_draw(rng, SIZE_WORDS[size], 0.5)]
    if description.color is not None:
        adjectives.append(_draw(rng, COLOR_WORDS[description.color]))
    return _Noun(tuple(adjectives), noun)


@dataclass(frozen=True, slots=True)
class _Token:
    """One token of a template: a slot or a word; the root and articles have no head written."""

    word: str
    head: str
    dep: str

    @property
    def is_noun(self) -> bool:
        return self.dep != "det" and _tag(self.word, self.dep) == "NN"


def _tag(word: str, dep: str) -> str:
    if dep in ("amod", "acomp", "acl", "relcl"):
        return _TAG_OF_WORD.get(word, _TAG_OF_DEP[dep])
    return _TAG_OF_DEP[dep]


@cache
def _read_template(template: str) -> tuple[_Token, ...]:
    tokens = []
    for piece in template.split():
        match = re.fullmatch(r"(\w+)>(\w+):(\w+)", piece)
        if match:
            tokens.append(_Token(*match.groups()))
        else:
            tokens.append(_Token(piece, "", "det" if piece in ("the", "the?") else "ROOT"))
    for place, token in enumerate(tokens):
        if token.dep == "det":
            noun = next(t for t in tokens[place + 1 :] if t.is_noun)
            tokens[place] = replace(token, head=noun.word)
    return tuple(tokens)


def _fill(
    rng: np.random.Generator, template: str, nouns: Mapping[str, _Noun], indefinite: str
) -> list[tuple[str, int, str, str]]:
    """Fill the slots of a template; return (word, head, dep, tag) of each word.

    The slots named in ``indefinite`` now and then take "a" for "the".
    """
    keep_articles = rng.random() < 0.6
    words: list[tuple[str, str, str]] = []
    place_of: dict[str, int] = {}
    for token in _read_template(template):
        if token.dep == "det":
            if token.word == "the" or (keep_articles and rng.random() < 0.9):
                loose = token.head in indefinite and rng.random() < 0.15
                words.append(("a" if loose else "the", token.head, "det"))
            continue
        noun = nouns.get(token.word)
        for adjective in noun.adjectives if noun else ():
            words.append((adjective, token.word, "amod"))
        place_of[token.word] = len(words)
        words.append((noun.noun if noun else token.word, token.head, token.dep))
    root = place_of["T"]
    for place, (word, head, dep) in enumerate(words):
        if word == "a" and words[place + 1][0][0] in "aeiou":
            words[place] = ("an", head, dep)
    return [
        (word, place_of[head] if head else root, dep, _tag(word, dep)) for word, head, dep in words
    ]


def _type_out(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Write the words as people type them: any case, now and then a space too many."""
    gaps = [" "] * (len(words) - 1)
    if words[-1] == ".":
        gaps[-1] = ""
    elif gaps and rng.random() < 0.1:
        gaps[int(rng.integers(len(gaps)))] = "  "
    text = "".join(word + gap for word, gap in zip(words, [*gaps, ""], strict=True))
    case = rng.random()
    if case < 0.25:
        text = text[0].upper() + text[1:]
    elif case < 0.32:
        text = text.upper()
    elif case < 0.36:
        text = text.title()
    return (" " if rng.random() < 0.03 else "") + text + (" " if rng.random() < 0.1 else "")


def _express(
    rng: np.random.Generator,
    name: str,
    template: str,
    nouns: Mapping[str, _Noun],
    indefinite: str,
) -> Expression:
    rows = _fill(rng, template, nouns, indefinite)
    if rng.random() < 0.07:
        root = next(place for place, row in enumerate(rows) if row[2] == "ROOT")
        rows.append((".", root, "punct", "."))
    words, heads, deps, tags = (tuple(column) for column in zip(*rows, strict=True))
    return Expression(
        kind=_KIND_OF.get(name, name),
        raw=_type_out(rng, words),
        words=words,
        heads=heads,
        deps=deps,
        pos=tuple(POS_OF_TAG[tag] for tag in tags),
        tags=tags,
    )


def _say(rng: np.random.Generator, meaning: _Meaning) -> Expression:
    nouns = {"T": _name(rng, meaning.target)}
    for slot, anchor in zip("AB", meaning.anchors, strict=False):
        nouns[slot] = _name(rng, anchor)
    template = _weighted(rng, _TEMPLATES[meaning.name])
    indefinite = "T" if template.startswith("the? T") else ""
    return _express(rng, meaning.name, template, nouns, indefinite)


def expressions_for(
    scene: Scene, index: int, rng: np.random.Generator, count: int
) -> tuple[Expression, ...]:
    """Write expressions that refer to one object of a scene and to no other.

    Args:
        scene: the scene.
        index: which of ``scene.objects`` is meant.
        rng: the only source of chance.
        count: how many are wanted.

    Returns:
        At most ``count`` expressions that differ in more than articles; kinds are mixed, about
        30 % attributes, 30 % position, 10 % size and 30 % relation over many scenes. Fewer, or
        none, where the scene allows too little.

    Raises:
        IndexError: the scene has no such object.
    """
    if not 0 <= index < len(scene.objects):
        raise IndexError(
            f"Expected an object index below {len(scene.objects)}, got {index}; "
            "use an index into scene.objects."
        )
    view = _View.of(scene)
    sayable = {name: meanings for name in _TEMPLATES if (meanings := _meanings(view, index, name))}
    found: dict[tuple[str, ...], Expression] = {}
    for _ in range(4 * count):
        groups = {
            group: share
            for group, (share, names) in _GROUPS.items()
            if any(name in sayable for name in names)
        }
        if not groups or len(found) == count:
            break
        names = _GROUPS[_weighted(rng, groups)][1]
        name = _weighted(rng, {n: weight for n, weight in names.items() if n in sayable})
        expression = _say(rng, _choose(rng, sayable[name]))
        found.setdefault(_without_articles(expression), expression)
    return tuple(found.values())


def _without_articles(expression: Expression) -> tuple[str, ...]:
    pairs = zip(expression.words, expression.deps, strict=True)
    return tuple(word for word, dep in pairs if dep not in ("det", "punct"))


def _choose(rng: np.random.Generator, meanings: Sequence[_Meaning]) -> _Meaning:
    """Choose one of them; people name shapes most, then colours, and sizes least."""
    weights = np.cumsum([_likelihood(*m.anchors) * _likelihood(m.target) for m in meanings])
    return meanings[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]


def _likelihood(*descriptions: _Description) -> float:
    return math.prod(
        (0.25 if description.shape is None else 1.0)
        * (1.0 if description.color is None else 0.8)
        * (1.0 if description.size is None else 0.35)
        for description in descriptions
    )


# Phrases without a scene, for training a parser.

_EVERYDAY_NOUNS = (
    *("person", "man", "woman", "boy", "girl", "kid", "guy", "lady", "player", "baby"),
    *("cat", "dog", "horse", "cow", "sheep", "bear", "elephant", "zebra", "giraffe", "bird"),
    *("car", "truck", "bus", "train", "bike", "boat", "plane", "chair", "couch", "bed", "table"),
    *("shirt", "hat", "jacket", "dress", "bag", "suitcase", "umbrella", "book", "laptop"),
    *("cup", "glass", "bottle", "bowl", "plate", "pizza", "sandwich", "banana", "apple", "donut"),
)
_EVERYDAY_ADJECTIVES = (
    *("brown", "pink", "gray", "dark", "striped", "wooden", "young", "old", "tall", "short"),
    *("long", "blurry", "empty", "other"),
)
_BARE_COLORS = ("black", "red", "blue", "pink")
_SYLLABLES = tuple(
    c + v for c in ("b", "d", "fl", "g", "k", "l", "m", "n", "pr", "st", "v", "z") for v in "aeiou"
)

_OTHER_TEMPLATES: _Templates = {
    "the? T in>T:prep the? A>in:pobj": 3,
    "the? T in>T:prep C>in:pobj": 2,
    "the? T in>T:prep C>in:pobj on>T:prep the? left>on:pobj": 0.7,
    "the? T in>T:prep C>in:pobj on>T:prep the? right>on:pobj": 0.7,
    "the? T in>T:prep the? front>in:pobj": 1,
    "the? T in>T:prep the? back>in:pobj": 1,
    "the? T in>T:prep the? background>in:pobj": 0.5,
    "the? T in>T:prep front>in:pobj of>front:prep the? A>of:pobj": 2,
    "the? T behind>T:prep the? A>behind:pobj": 2,
    "the? T on>T:prep the? A>on:pobj": 1,
    "the? T with>T:prep the? A>with:pobj": 1,
    "the? T of>T:prep A>of:pobj": 1,
    "the? T of>T:prep A>of:pobj on>T:prep the? left>on:pobj": 0.3,
    "the? T near>T:prep the? A>near:pobj": 1,
    "the? T next>T:advmod to>next:prep the? A>to:pobj": 1,
    "the? T closer>T:amod to>closer:prep the? A>to:pobj": 0.5,
    "the? T further>T:advmod from>further:prep the? A>from:pobj": 0.3,
    "the? T north>T:advmod of>north:prep the? A>of:pobj": 0.2,
    "the? T south>T:advmod of>south:prep the? A>of:pobj": 0.2,
    "the? T holding>T:acl the? A>holding:dobj": 1,
    "the? T wearing>T:acl the? A>wearing:dobj": 0.7,
    "the? T sitting>T:acl on>sitting:prep the? A>on:pobj": 0.5,
    "the? T standing>T:acl behind>standing:prep the? A>behind:pobj": 0.5,
    "the? T who>sitting:nsubj is>sitting:aux sitting>T:relcl on>sitting:prep the? A>on:pobj": 0.3,
    "the? T that>holding:nsubj is>holding:aux holding>T:relcl the? A>holding:dobj": 0.3,
    "the? T who>is:nsubj is>T:relcl in>is:prep the? A>in:pobj": 0.3,
    "the? T that>is:nsubj is>T:relcl on>is:prep the? left>on:pobj": 0.3,
    "the? T and>T:cc the? A>T:conj": 0.5,
    "the? front>T:amod T": 0.7,
    "the? back>T:amod T": 0.7,
    "the? second>T:amod T from>T:prep the? left>from:pobj": 0.4,
    "the? second>T:amod T from>T:prep the? right>from:pobj": 0.4,
}
"""Everyday wording that the shapes world has no image of; ``C`` is a colour used as a noun."""

_OTHER_SHARE = 0.2
_EVERYDAY_SHARE = 0.25
_MADE_UP_SHARE = 0.1


def sample_phrase(rng: np.random.Generator) -> Expression:
    """Write a phrase that need not be true of anything, to train a parser on.

    Four in five use the wording of ``expressions_for``; the others have kind "other" and everyday
    wording ("the man in front of the car"). A quarter of the nouns are everyday ones, and one
    noun or adjective in ten is made up of syllables: what follows "the" is a noun all the same.

    Args:
        rng: the only source of chance.
    """
    if rng.random() < _OTHER_SHARE:
        name, template = "other", _weighted(rng, _OTHER_TEMPLATES)
    else:
        name = list(_TEMPLATES)[int(rng.integers(len(_TEMPLATES)))]
        template = _weighted(rng, _TEMPLATES[name])
    nouns = {slot: _any_noun(rng) for slot in "TAB"}
    nouns["C"] = _Noun((), _draw(rng, _BARE_COLORS, 0.0))
    return _express(rng, name, template, nouns, indefinite="TAB")


def _any_noun(rng: np.random.Generator) -> _Noun:
    size, color = (
        str(rng.choice(list(names))) if rng.random() < share else None
        for names, share in ((SIZES, 0.35), (COLORS, 0.6))
    )
    shape = str(rng.choice(list(SHAPES))) if rng.random() < 0.8 else None
    name = _name(rng, _Description(shape, color, size))
    if rng.random() < _EVERYDAY_SHARE:
        adjectives = name.adjectives
        if rng.random() < 0.3:
            adjectives = (*adjectives[:-1], _draw(rng, _EVERYDAY_ADJECTIVES, 0.0))
        name = _Noun(adjectives, _draw(rng, _EVERYDAY_NOUNS, 0.0))
    return _Noun(
        tuple(_perhaps_made_up(rng, adjective) for adjective in name.adjectives),
        _perhaps_made_up(rng, name.noun),
    )


def _perhaps_made_up(rng: np.random.Generator, word: str) -> str:
    if rng.random() >= _MADE_UP_SHARE:
        return word
    syllables = rng.integers(len(_SYLLABLES), size=int(rng.integers(2, 4)))
    ending = ("", "", "n", "r", "t", "ck")[int(rng.integers(6))]
    return "".join(_SYLLABLES[int(syllable)] for syllable in syllables) + ending
