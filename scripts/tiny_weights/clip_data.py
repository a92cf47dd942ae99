"""What the tiny CLIP learns from: scenes of the shapes world, and captions of their objects.

A caption is a phrase of the shapes world's grammar. What its noun phrase says of shape, colour and
size decides which regions it fits; position words, comparisons and other nouns are noise that the
training must not let move its vector.

Shapes: N scenes or regions, K objects of a scene, H, W image pixels, T texts, L tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from hybridgl.views import blur_background
from refer.shapes.grammar import Expression, sample_phrase
from refer.shapes.scene import COLORS, IMAGE_HW, SHAPES, SIZES
from refer.shapes.words import (
    COLOR_WORDS,
    GENERIC_NOUNS,
    SHAPE_NOUNS,
    SIZE_WORDS,
    SMALL_CIRCLE_NOUN,
)
from refer.shapes.world import training_scene

__all__ = [
    "ANY",
    "GEM_WORDING",
    "Attributes",
    "Captions",
    "ScenePool",
    "attributes_of",
    "described",
    "fits_TN",
    "noun_phrase",
    "open_pool",
]

ANY = -1
"""Stands for an attribute that a phrase does not tell; also pads the objects of a scene."""

_MAX_OBJECTS = 7
_NAMES: tuple[tuple[str, ...], ...] = (tuple(SHAPES), tuple(COLORS), tuple(SIZES))
_CONTEXT = 77

_TOLD_SHARES = (0.85, 0.6, 0.3)
"""Shares of the captions that tell shape, colour and size."""

_OPPOSITE_SHARES = (0.3, 0.2, 0.5)
"""How often the wrong one of two opposite captions is wrong in shape, colour and size."""

Attributes = tuple[int, int, int]
"""Indices of a shape, a colour and a size, or ``ANY``."""


# Scenes.


@dataclass(frozen=True, slots=True, eq=False)
class ScenePool:
    """Training scenes on disk, memory-mapped.

    Attributes:
        images_NHW3: uint8 RGB.
        labels_NHW: uint8; which object owns the pixel, from 1; 0 for none.
        attributes_NK3: int8; shape, colour and size of each object; ``ANY`` beyond the last one.
    """

    images_NHW3: NDArray[np.uint8]
    labels_NHW: NDArray[np.uint8]
    attributes_NK3: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.images_NHW3)

    def num_objects(self, scene: int) -> int:
        """Objects in a scene."""
        return int((self.attributes_NK3[scene, :, 0] != ANY).sum())

    def masks_NHW(self, scene: int, objects: Sequence[int]) -> Tensor:
        """Visible pixels of some objects of a scene, bool, (N, H, W)."""
        labels_HW = self.labels_NHW[scene]
        return torch.from_numpy(np.stack([labels_HW == index + 1 for index in objects]))

    def image_3HW(self, scene: int) -> Tensor:
        """Image of a scene, uint8, (3, H, W)."""
        return torch.from_numpy(np.ascontiguousarray(self.images_NHW3[scene].transpose(2, 0, 1)))

    def blurred_3HW(self, scene: int) -> Tensor:
        """Background of the global views of a scene, uint8, (3, H, W)."""
        blurred_HW3 = blur_background(np.ascontiguousarray(self.images_NHW3[scene]))
        return torch.from_numpy(np.ascontiguousarray(blurred_HW3.transpose(2, 0, 1)))


def open_pool(folder: Path, seed: int, size: int) -> ScenePool:
    """Open the pool in ``folder``, drawing it first if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{seed}-{size}.npy" for name in ("images", "labels", "attributes")]
    if not paths[-1].exists():
        drafts = [path.with_suffix(".draft") for path in paths]
        shapes = [(size, *IMAGE_HW, 3), (size, *IMAGE_HW), (size, _MAX_OBJECTS, 3)]
        images_NHW3, labels_NHW, attributes_NK3 = (
            np.lib.format.open_memmap(draft, mode="w+", dtype=dtype, shape=shape)
            for draft, dtype, shape in zip(
                drafts, (np.uint8, np.uint8, np.int8), shapes, strict=True
            )
        )
        attributes_NK3[...] = ANY
        for index in tqdm(range(size), desc="scenes", mininterval=5):
            scene = training_scene(seed, index)
            images_NHW3[index] = scene.image_HW3
            labels_NHW[index] = scene.labels_HW
            for place, item in enumerate(scene.objects):
                attributes_NK3[index, place] = attributes_of(item.shape, item.color, item.size)
        for array in (images_NHW3, labels_NHW, attributes_NK3):
            array.flush()
        for draft, path in zip(drafts, paths, strict=True):
            draft.replace(path)
    return ScenePool(*(np.load(path, mmap_mode="r") for path in paths))


def attributes_of(shape: str | None, color: str | None, size: str | None) -> Attributes:
    """Return indices of attribute names; ``ANY`` for None."""
    shape_index, color_index, size_index = (
        ANY if name is None else names.index(name)
        for name, names in zip((shape, color, size), _NAMES, strict=True)
    )
    return shape_index, color_index, size_index


# Captions.


def _by_word(words: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: name for name, synonyms in words.items() for word in synonyms}


_SHAPE_OF, _COLOR_OF, _SIZE_OF = map(_by_word, (SHAPE_NOUNS, COLOR_WORDS, SIZE_WORDS))


def described(phrase: Expression) -> Attributes | None:
    """Return what the root noun and the adjectives before it tell.

    Returns:
        None if the noun names nothing of the shapes world.
    """
    root = phrase.deps.index("ROOT")
    noun = phrase.words[root]
    adjectives = [
        word
        for word, head, dep in zip(phrase.words, phrase.heads, phrase.deps, strict=True)
        if head == root and dep == "amod"
    ]
    size = next((_SIZE_OF[word] for word in adjectives if word in _SIZE_OF), None)
    color = next((_COLOR_OF[word] for word in adjectives if word in _COLOR_OF), None)
    if noun == SMALL_CIRCLE_NOUN:
        return attributes_of("circle", color, "small")
    if noun in GENERIC_NOUNS:
        return attributes_of(None, color, size)
    return attributes_of(_SHAPE_OF[noun], color, size) if noun in _SHAPE_OF else None


def noun_phrase(phrase: Expression) -> tuple[str, ...]:
    """Words of the first noun phrase: in this grammar, all up to the root."""
    return phrase.words[: phrase.deps.index("ROOT") + 1]


_Wording = Callable[[Expression], tuple[str, ...]]

_WORDINGS: tuple[tuple[float, _Wording], ...] = (
    (0.5, lambda phrase: phrase.words),
    (0.25, noun_phrase),
    (0.1, lambda phrase: ("a", "photo", "of", *noun_phrase(phrase))),
    (0.15, lambda phrase: ("a", "photo", "of", "a", *noun_phrase(phrase), ".")),
)
"""The ways in which the method shows text to CLIP, and their shares of the captions."""

GEM_WORDING = _WORDINGS[-1][1]
"""The prompt of the attention maps."""


class Captions:
    """Phrases by what they tell, in a compact vocabulary.

    Attributes:
        token_ids: the ids of CLIP's tokenizer that the phrases use, ascending: row ``i`` of the
            compact embedding table is row ``token_ids[i]`` of the full one.
    """

    def __init__(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(np.random.SeedSequence((seed, 101)))
        self._phrases: dict[Attributes, list[Expression]] = defaultdict(list)
        words = {"a", "photo", "of", "."}
        for _ in range(count):
            phrase = sample_phrase(rng)
            attributes = described(phrase)
            if phrase.kind != "other" and attributes not in (None, (ANY, ANY, ANY)):
                self._phrases[attributes].append(phrase)
                words.update(phrase.words)
        tokenizer = open_clip.SimpleTokenizer(context_length=_CONTEXT)
        ids_of = {word: tokenizer.encode(word) for word in sorted(words)}
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        self.token_ids = sorted({start, end, *(i for ids in ids_of.values() for i in ids)})
        row_of = {token: row for row, token in enumerate(self.token_ids)}
        self._rows_of = {word: [row_of[i] for i in ids] for word, ids in ids_of.items()}
        self._start, self._end = row_of[start], row_of[end]

    def sample(
        self,
        rng: np.random.Generator,
        attributes: Sequence[int],
        wording: _Wording | None = None,
    ) -> tuple[Attributes, tuple[str, ...]]:
        """Draw a phrase that fits an object, and what it tells.

        Args:
            rng: the only source of chance.
            attributes: shape, colour and size of the object.
            wording: how the phrase is shown; None draws one.
        """
        while True:
            told = _some_of(rng, attributes)
            if self._phrases.get(told):
                return told, self._say(rng, told, wording)

    def sample_opposites(
        self, rng: np.random.Generator, attributes: Sequence[int]
    ) -> list[tuple[Attributes, tuple[str, ...]]]:
        """Draw a phrase that fits an object and one that is wrong in a single attribute.

        Args:
            rng: the only source of chance.
            attributes: shape, colour and size of the object.
        """
        column = int(rng.choice(len(_NAMES), p=_OPPOSITE_SHARES))
        count = len(_NAMES[column])
        while True:
            told = list(_some_of(rng, attributes))
            told[column] = int(attributes[column])
            wrong = told.copy()
            wrong[column] = (told[column] + int(rng.integers(1, count))) % count
            pair: list[Attributes] = [(told[0], told[1], told[2]), (wrong[0], wrong[1], wrong[2])]
            if all(self._phrases.get(tells) for tells in pair):
                return [(tells, self._say(rng, tells, None)) for tells in pair]

    def _say(
        self, rng: np.random.Generator, told: Attributes, wording: _Wording | None
    ) -> tuple[str, ...]:
        phrases = self._phrases[told]
        phrase = phrases[int(rng.integers(len(phrases)))]
        if wording is None:
            shares = [share for share, _ in _WORDINGS]
            wording = _WORDINGS[int(rng.choice(len(_WORDINGS), p=shares))][1]
        return wording(phrase)

    def tokens_TL(self, texts: Iterable[Sequence[str]]) -> Tensor:
        """Compact token rows, int64, (T, L), as short as the longest text allows."""
        rows = [
            [self._start, *(row for word in words for row in self._rows_of[word]), self._end]
            for words in texts
        ]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def _some_of(rng: np.random.Generator, attributes: Sequence[int]) -> Attributes:
    """Return what a phrase may tell of an object."""
    shape, color, size = (
        int(value) if rng.random() < share else ANY
        for value, share in zip(attributes, _TOLD_SHARES, strict=True)
    )
    return shape, color, size


def fits_TN(told_T3: Tensor, attributes_N3: Tensor) -> Tensor:
    """Which phrase fits which region, bool, (T, N)."""
    told_T13 = told_T3[:, None]
    return ((told_T13 == ANY) | (told_T13 == attributes_N3[None])).all(dim=-1)
