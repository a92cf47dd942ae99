"""The grammar is checked against a reader of its own: text in, objects out, pixel by pixel."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from refer.shapes.grammar import (
    KINDS,
    MARGIN,
    POS_OF_TAG,
    SIZE_RATIO,
    Expression,
    expressions_for,
    sample_phrase,
)
from refer.shapes.scene import IMAGE_HW, Scene, SceneObject, sample_scene
from refer.shapes.words import COLOR_WORDS, GENERIC_NOUNS, SHAPE_NOUNS, SIZE_WORDS

ATTRIBUTE_OF_WORD = {
    word: (kind, name)
    for kind, table in (("shape", SHAPE_NOUNS), ("color", COLOR_WORDS), ("size", SIZE_WORDS))
    for name, words in table.items()
    for word in words
}
NOUNS = {word for words in SHAPE_NOUNS.values() for word in words} | {*GENERIC_NOUNS, "dot"}
TINY = 1e-9


def boxes_of(scene: Scene) -> list[tuple[int, int, int, int]]:
    boxes = []
    for number in range(1, len(scene.objects) + 1):
        ys, xs = np.nonzero(scene.labels_HW == number)
        boxes.append((int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    return boxes


class Reader:
    """Understands an expression without looking at how it was made.

    Every question has two answers: ``sure`` (nobody would object) and not sure (somebody might
    agree). A good expression is surely true of one object and not even arguably of another.
    """

    def __init__(self, scene: Scene) -> None:
        self.objects = scene.objects
        self.boxes = boxes_of(scene)
        self.centers = [((a + c) / 2, (b + d) / 2) for a, b, c, d in self.boxes]
        self.height, self.width = scene.labels_HW.shape

    def meant(self, text: str, *, sure: bool) -> list[int]:
        words = [w for w in text.removesuffix(" .").split() if w not in ("the", "a", "an")]
        at = next(place for place, word in enumerate(words) if word in NOUNS)
        like = self.fitting([w for w in words[: at + 1] if w in ATTRIBUTE_OF_WORD or w == "dot"])
        lead = [w for w in words[:at] if w not in ATTRIBUTE_OF_WORD]
        rest = " ".join(words[at + 1 :])
        assert set(words[: at + 1]) <= {*ATTRIBUTE_OF_WORD, *NOUNS, *lead}
        return [i for i in like if self.holds(i, like, lead, rest, sure)]

    def fitting(self, words: list[str]) -> list[int]:
        def fits(item: SceneObject) -> bool:
            for word in words:
                if word == "dot":
                    if (item.shape, item.size) != ("circle", "small"):
                        return False
                    continue
                kind, name = ATTRIBUTE_OF_WORD[word]
                if getattr(item, kind) != name:
                    return False
            return True

        return [i for i, item in enumerate(self.objects) if fits(item)]

    def only(self, phrase: str) -> int:
        words = phrase.split()
        assert words[-1] in NOUNS
        (index,) = self.fitting([w for w in words if w not in GENERIC_NOUNS])
        return index

    def holds(self, i: int, like: list[int], lead: list[str], rest: str, sure: bool) -> bool:
        if lead and not rest:
            return self.led(i, like, " ".join(lead), sure)
        assert not lead
        if not rest:
            return True
        anchored = re.fullmatch(
            r"(?:which is |to |on )?(left|right|west|east) of (.+)"
            r"|(?:which is )?(above|below|under) (.+)"
            r"|on (top) of (.+)"
            r"|(?:which is )?(bigger|larger|smaller|tinier) than (.+)"
            r"|(inside|within)(?: of)? (.+)|(contained) in (.+)",
            rest,
        )
        if anchored and "picture" not in rest:
            word, phrase = (group for group in anchored.groups() if group)
            anchor = self.only(phrase)
            return i != anchor and self.related(word, i, anchor, sure)
        between = re.fullmatch(r"(?:in )?between (.+) and (.+)", rest)
        if between:
            first, second = self.only(between[1]), self.only(between[2])
            return i not in (first, second) and self.is_between(i, first, second, sure)
        place = re.fullmatch(
            r"(?:on|to|at|in|near|up|down)?(?: far)? ?"
            r"(left|right|middle|top|bottom|low|(?:top|bottom) (?:left|right))"
            r"(?: side| corner)?(?: of picture)?",
            rest,
        )
        assert place, rest
        return self.led(i, like, place[1], sure)

    def led(self, i: int, like: list[int], lead: str, sure: bool) -> bool:
        others = [j for j in like if j != i]
        lead = lead.removesuffix(" most")
        if lead in ("bigger", "larger"):
            assert len(like) == 2
        if lead in ("bigger", "larger", "biggest", "largest"):
            return all(self.related("bigger", i, j, sure) for j in others)
        if lead in ("smaller", "tinier"):
            assert len(like) == 2
        if lead in ("smaller", "tinier", "smallest"):
            return all(self.related("smaller", i, j, sure) for j in others)
        x, y = self.centers[i]
        if " " in lead:
            slack = -MARGIN if sure else MARGIN - TINY
            near_x = x if lead.endswith("left") else self.width - x
            near_y = y if lead.startswith("top") else self.height - y
            return near_x <= self.width / 2 + slack and near_y <= self.height / 2 + slack
        if lead == "middle":
            slack = 0 if sure else MARGIN - TINY
            return (
                abs(x - self.width / 2) <= self.width / 6 + slack
                and abs(y - self.height / 2) <= self.height / 4 + slack
            )
        word = {"top": "above", "bottom": "below", "low": "below"}.get(lead, lead)
        half = {
            "left": x <= self.width / 2,
            "right": x >= self.width / 2,
            "above": y <= self.height / 2,
            "below": y >= self.height / 2,
        }[word]
        return (half or not sure) and all(self.related(word, i, j, sure) for j in others)

    def related(self, word: str, i: int, j: int, sure: bool) -> bool:
        (x, y), (other_x, other_y) = self.centers[i], self.centers[j]
        gap = MARGIN if sure else TINY
        if word in ("left", "west"):
            return other_x - x >= gap
        if word in ("right", "east"):
            return x - other_x >= gap
        if word in ("above", "top"):
            return other_y - y >= gap
        if word in ("below", "under"):
            return y - other_y >= gap
        if word in ("bigger", "larger"):
            return self.is_bigger(i, j, sure)
        if word in ("smaller", "tinier"):
            return self.is_bigger(j, i, sure)
        return self.is_inside(i, j, sure)

    def is_bigger(self, i: int, j: int, sure: bool) -> bool:
        def area(k: int) -> float:
            left, top, right, bottom = self.boxes[k]
            return (right - left) * (bottom - top)

        ratios = [self.objects[i].radius / self.objects[j].radius, area(i) / area(j)]
        if sure:
            return min(ratios) >= SIZE_RATIO
        return max(ratios) > 1 / SIZE_RATIO + TINY

    def is_inside(self, i: int, ring: int, sure: bool) -> bool:
        assert self.objects[ring].shape == "ring"
        left, top, right, bottom = self.boxes[ring]
        if sure:
            a, b, c, d = self.boxes[i]
            return left < a and top < b and c < right and d < bottom
        x, y = self.centers[i]
        return left < x < right and top < y < bottom

    def is_between(self, i: int, first: int, second: int, sure: bool) -> bool:
        start, end, point = (np.array(self.centers[k]) for k in (first, second, i))
        way = end - start
        share = float(np.dot(point - start, way) / np.dot(way, way))
        aside = float(np.linalg.norm(point - start - share * way) / np.linalg.norm(way))
        if sure:
            return 0.25 <= share <= 0.75 and aside <= 0.2 + TINY
        return 0.05 <= share <= 0.95 and aside < 0.5


@cache
def written(count: int = 150) -> list[tuple[Scene, int, Expression]]:
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        for index in range(len(scene.objects)):
            found += [(scene, index, e) for e in expressions_for(scene, index, rng, 3)]
    return found


def scene_of(*objects: SceneObject) -> Scene:
    """A scene of filled squares, which is all that the grammar looks at."""
    labels_HW = np.zeros(IMAGE_HW, dtype=np.uint8)
    y, x = np.mgrid[0 : IMAGE_HW[0], 0 : IMAGE_HW[1]]
    for number, o in enumerate(objects, start=1):
        labels_HW[(abs(x - o.x) < o.radius) & (abs(y - o.y) < o.radius)] = number
    image_HW3: NDArray[np.uint8] = np.zeros((*IMAGE_HW, 3), dtype=np.uint8)
    return Scene(image_HW3, objects, labels_HW)


def thing(shape: str, color: str, x: float, y: float, radius: float = 15) -> SceneObject:
    return SceneObject(shape, color, "medium", x, y, radius, 0.0)


def kinds_of(scene: Scene, index: int) -> Counter[str]:
    rng = np.random.default_rng(0)
    return Counter(e.kind for _ in range(10) for e in expressions_for(scene, index, rng, 20))


@pytest.mark.slow
def test_expression_is_true_of_its_object_and_of_no_other():
    assert len(written()) > 1500
    reader = Reader(written()[0][0])
    for scene, index, expression in written():
        if scene.objects is not reader.objects:
            reader = Reader(scene)
        assert reader.meant(expression.text, sure=True) == [index], expression.text
        assert reader.meant(expression.text, sure=False) == [index], expression.text


def test_reader_of_this_test_sees_ambiguity():
    scene = scene_of(
        thing("star", "red", 40, 100), thing("star", "blue", 48, 150), thing("ring", "red", 200, 90)
    )
    reader = Reader(scene)
    assert reader.meant("star", sure=True) == [0, 1]
    assert reader.meant("left star", sure=True) == []
    assert reader.meant("the star left of the ring", sure=True) == [0, 1]
    assert reader.meant("the red star left of a ring .", sure=True) == [0]


def test_every_kind_is_written():
    assert {expression.kind for _, _, expression in written()} == set(KINDS)


def test_shares_of_the_kinds_are_as_documented():
    groups = Counter(expression.kind.partition(":")[0] for _, _, expression in written())
    shares = {group: number / groups.total() for group, number in groups.items()}
    expected = {"attributes": 0.3, "position": 0.3, "size": 0.1, "relation": 0.3}
    assert shares == pytest.approx(expected, abs=0.06)


def test_expressions_of_a_call_differ_in_more_than_articles():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        texts = [
            re.sub(r"\b(the|an?) | \.$", "", expression.text)
            for expression in expressions_for(scene, 0, rng, 6)
        ]
        assert len(texts) == len(set(texts))


def test_twins_are_not_told_apart_by_attributes():
    twins = scene_of(
        thing("star", "red", 40, 110), thing("star", "red", 200, 115), thing("ring", "blue", 90, 40)
    )
    kinds = kinds_of(twins, 0)
    assert kinds["attributes"] == 0
    assert kinds["position:left"] > 0
    assert kinds["size"] == 0


def test_a_near_tie_is_left_unsaid():
    apart = scene_of(thing("star", "red", 40, 60), thing("star", "red", 40 + MARGIN, 160))
    close = scene_of(thing("star", "red", 40, 60), thing("star", "red", 39 + MARGIN, 160))
    assert kinds_of(apart, 0)["position:left"] > 0
    assert kinds_of(close, 0)["position:left"] == 0


def test_leftmost_in_the_right_half_is_not_called_left():
    scene = scene_of(thing("star", "red", 140, 110), thing("star", "red", 220, 115))
    assert kinds_of(scene, 0)["position:left"] == 0
    assert kinds_of(scene, 1)["position:right"] > 0


def test_an_object_that_has_no_name_of_its_own_is_no_anchor():
    scene = scene_of(
        thing("star", "red", 60, 110),
        thing("star", "red", 100, 115),
        thing("ring", "blue", 150, 110),
        thing("ring", "blue", 200, 112),
    )
    texts = {
        e.text
        for _ in range(20)
        for e in expressions_for(scene, 0, np.random.default_rng(_), 20)
        if e.kind.startswith("relation")
    }
    assert not texts


def test_indistinguishable_objects_get_no_expression():
    scene = scene_of(*(thing("star", "red", 128, 112) for _ in range(2)))
    scene.labels_HW[100:110, 120:136] = 1
    assert expressions_for(scene, 0, np.random.default_rng(0), 3) == ()


def test_index_outside_the_scene_is_refused():
    scene = scene_of(thing("star", "red", 60, 110))
    with pytest.raises(IndexError, match="Expected an object index below 1, got 1"):
        expressions_for(scene, 1, np.random.default_rng(0), 1)


def test_same_seed_same_expressions():
    scene = sample_scene(np.random.default_rng(3))
    first, second = (expressions_for(scene, 1, np.random.default_rng(7), 5) for _ in range(2))
    assert first == second


def phrases() -> list[Expression]:
    rng = np.random.default_rng(11)
    return [expression for _, _, expression in written()] + [
        sample_phrase(rng) for _ in range(2000)
    ]


def test_gold_parse_is_a_tree_with_one_root():
    for phrase in phrases():
        roots = [i for i, head in enumerate(phrase.heads) if head == i]
        assert len(roots) == 1, phrase.text
        assert phrase.deps[roots[0]] == "ROOT"
        assert phrase.deps.count("ROOT") == 1
        for start in range(len(phrase.words)):
            token, steps = start, 0
            while phrase.heads[token] != token:
                token, steps = phrase.heads[token], steps + 1
                assert steps < len(phrase.words), phrase.text


def test_gold_parse_is_projective():
    for phrase in phrases():
        arcs = [sorted(arc) for arc in enumerate(phrase.heads) if arc[0] != arc[1]]
        assert not any(a < c < b < d for a, b in arcs for c, d in arcs), phrase.text


def test_parts_of_a_parse_have_one_length_and_known_labels():
    for phrase in phrases():
        lengths = {len(p) for p in (phrase.words, phrase.heads, phrase.deps, phrase.tags)}
        assert lengths == {len(phrase.pos)}
        assert phrase.pos == tuple(POS_OF_TAG[tag] for tag in phrase.tags)


def test_gold_parse_of_a_known_phrase():
    scene = scene_of(
        thing("square", "red", 60, 110), thing("square", "red", 220, 115),
        thing("ring", "green", 150, 110),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    found = {e.text: e for _ in range(200) for e in expressions_for(scene, 0, rng, 9)}
    parse = found["the square left of the green ring"]
    assert parse.kind == "relation:left"
    assert parse.heads == (1, 1, 1, 2, 6, 6, 3)
    assert parse.deps == ("det", "ROOT", "advmod", "prep", "det", "amod", "pobj")
    assert parse.tags == ("DT", "NN", "RB", "IN", "DT", "JJ", "NN")


def test_raw_text_is_rough_and_cleans_to_the_words():
    rough = Counter[str]()
    for phrase in phrases():
        # One space at most is dropped between words: three in a row would stay a token.
        assert "   " not in phrase.raw
        cleaned = phrase.raw.lower().removesuffix(" ")
        dotted = cleaned.endswith(".")
        assert [*cleaned.removesuffix(".").split(), *["."] * dotted] == list(phrase.words)
        rough["double"] += "  " in phrase.raw
        rough["upper"] += phrase.raw.isupper()
        rough["trailing"] += phrase.raw.endswith(" ")
        rough["dot"] += dotted
        rough["plain"] += phrase.raw == phrase.text
        rough["bare"] += "det" not in phrase.deps
    assert min(rough.values()) > 0.02 * len(phrases())
    assert set(rough) == {"double", "upper", "trailing", "dot", "plain", "bare"}


def test_an_is_written_before_a_vowel():
    for phrase in phrases():
        for article, word in zip(phrase.words, phrase.words[1:], strict=False):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou"), phrase.text
