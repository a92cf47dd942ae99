"""Figures of what the method saw and predicted: one panel each, and a gallery.

An overlay leaves the object in its own colours, fades everything else, and outlines prediction and
ground truth: a tint would turn the colours that expressions name into others. matplotlib is
imported where a figure is drawn, so that importing the library stays cheap.

Shapes: N proposals, K candidates, H x W image pixels.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hybridgl.masks import Proposals
    from hybridgl.methods import Prediction

__all__ = [
    "GT_RGB",
    "PREDICTION_RGB",
    "GalleryItem",
    "draw_gallery",
    "draw_prediction",
    "overlay",
]

PREDICTION_RGB = (255, 0, 160)
"""Outline of a prediction, magenta, 0 to 255; no object of the shapes world has this colour."""
GT_RGB = (0, 205, 225)
"""Outline of the ground truth, cyan, 0 to 255; no object of the shapes world has this colour."""

_CANDIDATES_RGB = ((240, 130, 0), (40, 110, 240), (20, 150, 90))
_TITLES = {"features": "mask features", "relations": "relations", "guided": "with guidance"}
"""Of the panels of variants; a variant of another name has its own."""
_FADED_SHARE = 0.7
"""Share of light grey in what lies outside a prediction."""
_FADED_TOWARDS = 228
_OUTLINES_PER_SIDE = 160
"""An outline is this part of the longer side of the image wide, and at least one pixel."""
_MOST_CHARACTERS = 90
"""Longer texts are cut, so that they leave room for the images."""


def overlay(
    image_HW3: NDArray[np.uint8],
    mask_HW: NDArray[np.bool_] | None,
    gt_mask_HW: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Fade what lies outside a prediction, and outline it in magenta and the ground truth in cyan.

    The outlines run side by side where both agree, outside of the masks, except where a mask
    touches the border of the image: there they run along the border.

    Args:
        image_HW3: RGB, uint8, (H, W, 3).
        mask_HW: the prediction, bool, (H, W); None fades nothing.
        gt_mask_HW: bool, (H, W); None where it is not known.

    Returns:
        uint8, (H, W, 3).

    >>> mask_HW = np.eye(9, dtype=bool)
    >>> shown_HW3 = overlay(np.full((9, 9, 3), 40, dtype=np.uint8), mask_HW)
    >>> shown_HW3[4, 4].tolist(), shown_HW3[4, 5].tolist(), shown_HW3[0, 8].tolist()
    ([40, 40, 40], [255, 0, 160], [171, 171, 171])
    """
    shown_HW3 = image_HW3.copy()
    if mask_HW is not None:
        faded = (1 - _FADED_SHARE) * np.arange(256) + _FADED_SHARE * _FADED_TOWARDS
        shown_HW3[~mask_HW] = faded.astype(np.uint8)[image_HW3[~mask_HW]]
    width = max(1, round(max(image_HW3.shape[:2]) / _OUTLINES_PER_SIDE))
    if gt_mask_HW is not None:
        shown_HW3[_ring(gt_mask_HW, width, 2 * width)] = GT_RGB
    if mask_HW is not None:
        shown_HW3[_ring(mask_HW, 0, width)] = PREDICTION_RGB
    return shown_HW3


def draw_prediction(
    image_HW3: NDArray[np.uint8],
    proposals: Proposals,
    prediction: Prediction,
    attention_HW: NDArray[np.float32] | None,
    *,
    title: str,
    gt_mask_HW: NDArray[np.bool_] | None = None,
) -> bytes:
    """Draw image, ground truth, every variant, attention map, candidates with scores, and parse.

    Args:
        image_HW3: RGB, uint8, (H, W, 3).
        proposals: all masks of the image.
        prediction: what was predicted, and the scores.
        attention_HW: attention map under the position prior, mean 1, float32, (H, W); None where
            there is none.
        title: first line.
        gt_mask_HW: bool, (H, W); None where it is not known.

    Returns:
        A PNG file.
    """
    masks = _mask_by_variant(proposals, prediction)
    top = ["image", "ground truth", *masks]
    columns = 2 * max(len(top), 5)
    written = columns - 4
    layout: list[Any] = [
        [name for name in top for _ in range(2)] + ["."] * (columns - 2 * len(top)),
        ["attention"] * 2
        + ["candidates"] * 2
        + ["scores"] * (written // 2)
        + ["expression"] * (written - written // 2),
    ]
    figure = _figure(1.6 * columns, 6.8)
    axes = figure.subplot_mosaic(layout)
    for axis in axes.values():
        axis.set_axis_off()
    _show(axes["image"], image_HW3, "image")
    if gt_mask_HW is not None:
        _show(axes["ground truth"], overlay(image_HW3, None, gt_mask_HW), "ground truth")
    for variant, mask_HW in masks.items():
        title_of_variant = _TITLES.get(variant, variant)
        _show(axes[variant], overlay(image_HW3, mask_HW, gt_mask_HW), title_of_variant)
    if attention_HW is not None:
        _show(axes["attention"], image_HW3, "attention map and position prior")
        axes["attention"].imshow(attention_HW, cmap="inferno", alpha=0.65)
    _show_candidates(axes["candidates"], image_HW3, proposals, prediction)
    _write_scores(axes["scores"], prediction)
    _write_expression(axes["expression"], prediction)
    figure.suptitle(_cut(title), fontsize=13, parse_math=False)
    _add_legend(figure)
    return _png(figure)


@dataclass(frozen=True, slots=True, eq=False)
class GalleryItem:
    """One image of a gallery.

    Attributes:
        image_HW3: RGB, uint8, (H, W, 3).
        mask_HW: the prediction, bool, (H, W).
        gt_mask_HW: bool, (H, W).
        expression: written above.
    """

    image_HW3: NDArray[np.uint8]
    mask_HW: NDArray[np.bool_]
    gt_mask_HW: NDArray[np.bool_]
    expression: str


def draw_gallery(items: Sequence[GalleryItem], *, columns: int = 4) -> bytes:
    """Draw many predictions beside their ground truths.

    Args:
        items: at least one.
        columns: images in a row.

    Returns:
        A PNG file.
    """
    rows = math.ceil(len(items) / columns)
    figure = _figure(3.1 * columns, 3.1 * rows + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, item in zip(axes.flat, items, strict=False):
        title = fill(_cut(item.expression), 30)
        _show(axis, overlay(item.image_HW3, item.mask_HW, item.gt_mask_HW), title)
    _add_legend(figure)
    return _png(figure)


def _mask_by_variant(proposals: Proposals, prediction: Prediction) -> dict[str, NDArray[np.bool_]]:
    """Return the predicted masks; none where the image has no proposals to choose from."""
    chosen = {name: proposals.masks_NHW[index] for name, index in prediction.proposals.items()}
    return {**chosen, **prediction.masks}


def _ring(mask_HW: NDArray[np.bool_], near: int, far: int) -> NDArray[np.bool_]:
    """Return the pixels more than ``near`` and at most ``far`` pixels away from a mask.

    Where the mask touches the border of the image, the ring is closed along it, inside the mask.
    """
    rows, columns = (np.minimum(np.arange(side), np.arange(side)[::-1]) for side in mask_HW.shape)
    border_HW = np.minimum.outer(rows, columns)
    closing_HW = mask_HW & (near <= border_HW) & (border_HW < far)
    return (_grown(mask_HW, far) & ~_grown(mask_HW, near)) | closing_HW


def _grown(mask_HW: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Grow a mask by some pixels to all sides, corners included."""
    for axis in (0, 1):
        padding = [(pixels, pixels) if other == axis else (0, 0) for other in (0, 1)]
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(mask_HW, padding), 2 * pixels + 1, axis=axis
        )
        mask_HW = np.asarray(windows.any(axis=-1))
    return mask_HW


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, which no window system has to show."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.12))
    FigureCanvasAgg(figure)
    return figure


def _add_legend(figure: Figure) -> None:
    """Say below the images which outline is which."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=_unit(rgb), linewidth=3, label=label)
        for rgb, label in (
            (PREDICTION_RGB, "prediction, in its own colours; the rest is faded"),
            (GT_RGB, "ground truth"),
        )
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False)


def _unit(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    """Return a colour with values from 0 to 1, as matplotlib takes it."""
    red, green, blue = rgb
    return red / 255, green / 255, blue / 255


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A box stands for what the font lacks, such as emoji.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    return buffer.getvalue()


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def _show(axis: Axes, image_HW3: NDArray[np.uint8], title: str) -> None:
    axis.imshow(image_HW3)
    axis.set_title(title, fontsize=11, parse_math=False)


def _show_candidates(
    axis: Axes, image_HW3: NDArray[np.uint8], proposals: Proposals, prediction: Prediction
) -> None:
    shown_HW3 = image_HW3.copy()
    candidates_K = [] if prediction.choice is None else prediction.choice.candidates_K.tolist()
    for rank, index in reversed(list(enumerate(candidates_K))):
        color = _CANDIDATES_RGB[rank % len(_CANDIDATES_RGB)]
        shown_HW3[_ring(proposals.masks_NHW[index], 0, 2)] = color
        x, y, w, h = proposals.boxes_xywh[index]
        middle = (x + w / 2, y + h / 2)
        axis.text(*middle, str(rank + 1), color="white", backgroundcolor=_unit(color))
    title = f"{len(candidates_K)} candidates of {len(proposals)} proposals"
    if not prediction.masks:
        _show(axis, shown_HW3, title if candidates_K else f"{len(proposals)} proposals")


def _write_scores(axis: Axes, prediction: Prediction) -> None:
    choice, similarity_N = prediction.choice, prediction.similarity_N
    if similarity_N is None:
        return
    if choice is None:
        highest = sorted(similarity_N, reverse=True)[:3]
        lines = ["highest similarities", *(f"{value:9.2f}" for value in highest)]
        _write(axis, lines if highest else ["no proposals"])
        return
    lines = ["     similarity  relation  coherence   final"]
    for rank, index in enumerate(choice.candidates_K):
        mark = "*" if index == choice.guided else " "
        lines.append(
            f"{mark}{rank + 1:>3}  {similarity_N[index]:9.2f} {choice.relation_K[rank]:9.3f} "
            f"{choice.coherence_N[index]:10.3f} {choice.final_K[rank]:7.3f}"
        )
    _write(axis, [*lines, "", "* the prediction with guidance"])


def _write_expression(axis: Axes, prediction: Prediction) -> None:
    expression = prediction.expression
    if expression is None:
        return
    lines = [
        f"noun phrase  {_cut(expression.noun_phrase)}",
        f"other nouns  {_cut(', '.join(expression.other_noun_phrases)) or '-'}",
        f"position     {expression.position.value}",
        f"relation     {expression.relation.value}",
    ]
    _write(axis, [fill(line, 60, subsequent_indent=" " * 13) for line in lines])


def _write(axis: Axes, lines: Sequence[str]) -> None:
    text = "\n".join(lines)
    axis.text(0.0, 0.95, text, family="monospace", fontsize=9, va="top", parse_math=False)
