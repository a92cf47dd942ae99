"""The words by which the shapes world names what is drawn: the lexicon of its grammar.

The first word of each entry is the attribute's own name in ``scene.py``; the others are synonyms.
"""

from __future__ import annotations

__all__ = ["COLOR_WORDS", "GENERIC_NOUNS", "SHAPE_NOUNS", "SIZE_WORDS", "SMALL_CIRCLE_NOUN"]

SHAPE_NOUNS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus"),
    "heart": ("heart",),
    "moon": ("moon", "crescent"),
}

SMALL_CIRCLE_NOUN = "dot"
"""Names a circle of size "small"."""

GENERIC_NOUNS = ("thing", "shape", "object")
"""Nouns that fit every object: the adjectives say what is meant."""

COLOR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red",),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "orange": ("orange",),
    "purple": ("purple", "violet"),
    "white": ("white",),
    "black": ("black",),
}

SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium",),
    "large": ("large", "big"),
}
