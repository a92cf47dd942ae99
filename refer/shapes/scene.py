"""Scenes of the shapes world: coloured objects on textured backgrounds, with exact masks.

A scene is drawn from a NumPy generator alone, so the same seed gives the same pixels. Objects are
painted in order: a later object covers an earlier one, and ``labels_HW`` says which object owns
each pixel.

Shapes: H, W image pixels. Coordinates are x, y in pixels, origin top left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLORS", "IMAGE_HW", "SHAPES", "SIZES", "Scene", "SceneObject", "sample_scene"]

IMAGE_HW = (224, 256)
"""Height and width of a scene, in pixels."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 40),
    "green": (44, 158, 60),
    "blue": (40, 84, 216),
    "yellow": (246, 218, 44),
    "orange": (250, 136, 22),
    "purple": (138, 54, 176),
    "white": (244, 244, 244),
    "black": (24, 24, 26),
}
"""RGB of each colour name, before shading."""

SIZES: dict[str, tuple[float, float]] = {
    "small": (21.0, 25.0),
    "medium": (31.0, 36.0),
    "large": (44.0, 52.0),
}
"""Range of the radius of each size name, in pixels."""

MIN_VISIBLE = 0.7
"""Least share of an object's own pixels that later objects leave visible."""

RING_HOLE = 0.6
"""Radius of a ring's hole, as a share of the ring's radius."""

_NUM_OBJECTS = (3, 7)
_MARGIN = 3.0
_PLACEMENT_TRIES = 60


def _star(inner: float) -> NDArray[np.float64]:
    angles = np.arange(10) * math.pi / 5 - math.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _inside_polygon(
    x: NDArray[np.float64], y: NDArray[np.float64], corners: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Test points by the even-odd rule; ``corners`` (corners, 2) of a closed polygon."""
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


_TRIANGLE = np.array([(0.0, -1.0), (0.95, 0.72), (-0.95, 0.72)])
_STAR = _star(0.42)

_Region = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]]

SHAPES: dict[str, _Region] = {
    "circle": lambda x, y: x * x + y * y <= 1.0,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 0.86,
    "triangle": lambda x, y: _inside_polygon(x, y, _TRIANGLE),
    "star": lambda x, y: _inside_polygon(x, y, _STAR),
    "ring": lambda x, y: (x * x + y * y <= 1.0) & (x * x + y * y >= RING_HOLE**2),
    "cross": lambda x, y: (
        (np.minimum(np.abs(x), np.abs(y)) <= 0.32) & (np.maximum(np.abs(x), np.abs(y)) <= 0.95)
    ),
    "heart": lambda x, y: (
        ((1.2 * x) ** 2 + (1.2 * y - 0.1) ** 2 - 1.0) ** 3 + (1.2 * x) ** 2 * (1.2 * y - 0.1) ** 3
        <= 0.0
    ),
    "moon": lambda x, y: (x * x + y * y <= 1.0) & ((x - 0.55) ** 2 + y * y >= 0.72),
}
"""Inside test of each shape name: coordinates in units of the radius, y downwards."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: its attribute names and its place, in pixels."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """An image and what is in it.

    Attributes:
        image_HW3: RGB, uint8, (H, W, 3).
        objects: in painting order; the last one covers the others.
        labels_HW: uint8, (H, W); ``i + 1`` where ``objects[i]`` is visible, 0 elsewhere.
    """

    image_HW3: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    labels_HW: NDArray[np.uint8]

    def mask_HW(self, index: int) -> NDArray[np.bool_]:
        """Return the visible pixels of ``objects[index]``, bool, (H, W)."""
        return self.labels_HW == index + 1


def sample_scene(rng: np.random.Generator, hw: tuple[int, int] = IMAGE_HW) -> Scene:
    """Draw a scene of 3 to 7 objects.

    Two thirds of the scenes repeat a shape or a colour on purpose, so that attributes alone do
    not always tell objects apart; one in five puts a small object inside a large ring.

    Args:
        rng: the only source of chance.
        hw: height and width in pixels.
    """
    while True:
        placed = _place_objects(rng, hw)
        if len(placed) >= _NUM_OBJECTS[0]:
            break
    objects = tuple(item for item, _ in placed)
    labels_HW = np.zeros(hw, dtype=np.uint8)
    image_HW3 = _background(rng, hw)
    _scatter_clutter(rng, image_HW3)
    for index, (item, mask_HW) in enumerate(placed):
        labels_HW[mask_HW] = index + 1
        _paint(rng, image_HW3, item, mask_HW)
    image_HW3 += rng.normal(0.0, rng.uniform(1.0, 5.0), size=image_HW3.shape).astype(np.float32)
    return Scene(np.clip(image_HW3, 0, 255).astype(np.uint8), objects, labels_HW)


def _place_objects(
    rng: np.random.Generator, hw: tuple[int, int]
) -> list[tuple[SceneObject, NDArray[np.bool_]]]:
    wanted = int(rng.integers(_NUM_OBJECTS[0], _NUM_OBJECTS[1] + 1))
    placed: list[tuple[SceneObject, NDArray[np.bool_]]] = []
    labels_HW = np.zeros(hw, dtype=np.uint8)
    areas: list[int] = []

    def admit(item: SceneObject) -> bool:
        mask_HW = _object_mask(item, hw)
        after_HW = np.where(mask_HW, np.uint8(len(placed) + 1), labels_HW)
        visible = np.bincount(after_HW.ravel(), minlength=len(placed) + 2)[1:]
        sizes = [*areas, int(mask_HW.sum())]
        if any(v < MIN_VISIBLE * a for v, a in zip(visible, sizes, strict=True)):
            return False
        placed.append((item, mask_HW))
        areas.append(sizes[-1])
        labels_HW[...] = after_HW
        return True

    if rng.random() < 0.2:
        ring = _sample_object(rng, hw, shape="ring", size="large")
        admit(ring)
        inner = _sample_object(rng, hw, size="small", center=(ring.x, ring.y))
        if inner.shape != "ring" and inner.color != ring.color:
            admit(inner)
    for _ in range(_PLACEMENT_TRIES):
        if len(placed) >= wanted:
            break
        shape = color = None
        if placed and rng.random() < 0.35:
            shape = placed[int(rng.integers(len(placed)))][0].shape
        if placed and rng.random() < 0.35:
            color = placed[int(rng.integers(len(placed)))][0].color
        candidate = _sample_object(rng, hw, shape=shape, color=color)
        gaps = [
            math.hypot(candidate.x - o.x, candidate.y - o.y) - 0.8 * (candidate.radius + o.radius)
            for o, _ in placed
        ]
        if min(gaps, default=1.0) > 0:
            admit(candidate)
    return placed


def _sample_object(
    rng: np.random.Generator,
    hw: tuple[int, int],
    *,
    shape: str | None = None,
    color: str | None = None,
    size: str | None = None,
    center: tuple[float, float] | None = None,
) -> SceneObject:
    shape = shape or str(rng.choice(list(SHAPES)))
    color = color or str(rng.choice(list(COLORS)))
    size = size or str(rng.choice(list(SIZES), p=[0.35, 0.4, 0.25]))
    radius = float(rng.uniform(*SIZES[size]))
    height, width = hw
    reach = radius + _MARGIN
    x = float(rng.uniform(reach, width - reach)) if center is None else center[0]
    y = float(rng.uniform(reach, height - reach)) if center is None else center[1]
    return SceneObject(shape, color, size, x, y, radius, float(rng.uniform(-0.2, 0.2)))


def _object_mask(item: SceneObject, hw: tuple[int, int]) -> NDArray[np.bool_]:
    height, width = hw
    reach = int(item.radius) + 3
    top, left = max(int(item.y) - reach, 0), max(int(item.x) - reach, 0)
    bottom, right = min(int(item.y) + reach + 1, height), min(int(item.x) + reach + 1, width)
    y, x = np.mgrid[top:bottom, left:right]
    u, v = (x + 0.5 - item.x) / item.radius, (y + 0.5 - item.y) / item.radius
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    mask_HW = np.zeros(hw, dtype=bool)
    mask_HW[top:bottom, left:right] = SHAPES[item.shape](cos * u + sin * v, cos * v - sin * u)
    return mask_HW


def _paint(
    rng: np.random.Generator,
    image_HW3: NDArray[np.float32],
    item: SceneObject,
    mask_HW: NDArray[np.bool_],
) -> None:
    """Fill the mask with the object's colour, shaded along a random direction."""
    rows, cols = np.nonzero(mask_HW)
    base = np.array(COLORS[item.color], dtype=np.float32) + rng.normal(0, 6, 3).astype(np.float32)
    direction = rng.uniform(0, 2 * math.pi)
    slope = (cols - item.x) * math.cos(direction) + (rows - item.y) * math.sin(direction)
    light = 1.0 + rng.uniform(0.0, 0.14) * slope / item.radius
    image_HW3[rows, cols] = base * light.astype(np.float32)[:, None]


def _muted_color(rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a greyish colour of middle brightness, unlike any object's."""
    return (rng.uniform(95, 175) + rng.uniform(-16, 16, size=3)).astype(np.float32)


def _background(rng: np.random.Generator, hw: tuple[int, int]) -> NDArray[np.float32]:
    """Draw a plain, gradient, striped, checked or cloudy background, float32, (H, W, 3)."""
    height, width = hw
    first, second = _muted_color(rng), _muted_color(rng)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    kind = rng.choice(["plain", "gradient", "stripes", "checks", "clouds"])
    angle = rng.uniform(0, math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind == "gradient":
        mix = (along - along.min()) / (along.max() - along.min())
    elif kind == "stripes":
        mix = 0.5 + 0.5 * np.sin(along * (2 * math.pi / rng.uniform(9, 30)))
        second = first + (second - first) * np.float32(0.5)
    elif kind == "checks":
        cell = rng.uniform(10, 28)
        mix = ((x // cell + y // cell) % 2).astype(np.float32)
        second = first + (second - first) * np.float32(0.5)
    elif kind == "clouds":
        coarse = rng.random((int(rng.integers(4, 10)), int(rng.integers(4, 10)))).astype(np.float32)
        mix = _upsample(coarse, hw)
    else:
        mix = np.zeros(hw, dtype=np.float32)
    mix_HW1 = np.asarray(mix, dtype=np.float32)[..., None]
    return np.asarray(first * (1 - mix_HW1) + second * mix_HW1, dtype=np.float32)


def _upsample(coarse: NDArray[np.float32], hw: tuple[int, int]) -> NDArray[np.float32]:
    """Interpolate a coarse grid bilinearly to ``hw``, corners aligned."""
    columns = np.linspace(0, coarse.shape[1] - 1, hw[1])
    rows = np.linspace(0, coarse.shape[0] - 1, hw[0])
    wide = np.stack([np.interp(columns, np.arange(coarse.shape[1]), line) for line in coarse])
    tall = np.stack([np.interp(rows, np.arange(coarse.shape[0]), line) for line in wide.T])
    return tall.T.astype(np.float32)


def _scatter_clutter(rng: np.random.Generator, image_HW3: NDArray[np.float32]) -> None:
    """Scatter specks and short bars in background colours, which no expression names."""
    height, width, _ = image_HW3.shape
    for _ in range(int(rng.integers(0, 9))):
        half_h, half_w = rng.integers(1, 6), rng.integers(1, 6)
        y, x = int(rng.integers(height)), int(rng.integers(width))
        patch = image_HW3[max(y - half_h, 0) : y + half_h, max(x - half_w, 0) : x + half_w]
        patch[...] = _muted_color(rng)
