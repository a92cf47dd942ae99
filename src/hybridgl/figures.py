"""Images of what the method saw and chose, one file per expression.

Shapes: N proposals, H x W image pixels.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from hybridgl.masks import Proposals
from hybridgl.methods.hybridgl import Prediction

__all__ = ["GUIDED_COLOR", "GalleryItem", "draw_gallery", "draw_prediction", "overlay"]

GUIDED_COLOR = (0.15, 0.45, 0.95)
"""RGB, 0 to 1, in which the final pick is shown."""

_TRUTH = (0.10, 0.75, 0.35)
_PURE = (0.95, 0.60, 0.10)
_MOST_CHARACTERS = 90
"""Longer texts are cut, so that they leave room for the images."""

_CANDIDATES = ((0.15, 0.45, 0.95), (0.85, 0.20, 0.55), (0.10, 0.65, 0.60))


def overlay(
    image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.bool_], color: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """The image with a mask tinted and its surroundings dimmed.

    Args:
        image_HW3: RGB, uint8, (H, W, 3).
        mask_HW: bool, (H, W).
        color: RGB, 0 to 1.

    Returns:
        uint8, (H, W, 3).
    """
    faded = 0.45 * np.arange(256)
    shown_HW3 = (faded + 0.55 * 205).astype(np.uint8)[image_HW3]
    for channel, value in enumerate(color):
        tinted = (faded + 0.55 * 255 * value).astype(np.uint8)
        shown_HW3[mask_HW, channel] = tinted[image_HW3[mask_HW, channel]]
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
    """A figure: image, truth, both picks, attention map, candidates with scores, and the parse.

    Args:
        image_HW3: RGB, uint8, (H, W, 3).
        proposals: all masks of the image.
        prediction: picks and scores.
        attention_HW: GEM map under the position prior, mean 1, float32, (H, W); None where there is none.
        title: first line.
        gt_mask_HW: bool, (H, W); None where it is not known.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(15, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4)
    for axis in axes.flat:
        axis.set_axis_off()
    _show(axes[0, 0], image_HW3, "image")
    if gt_mask_HW is not None:
        _show(axes[0, 1], overlay(image_HW3, gt_mask_HW, _TRUTH), "ground truth")
    for axis, name, color, title_of_pick in (
        (axes[0, 2], "pure", _PURE, "mask features"),
        (axes[0, 3], "guided", GUIDED_COLOR, "with guidance"),
    ):
        if name in prediction.picks:
            mask_HW = proposals.masks_NHW[prediction.picks[name]]
            _show(axis, overlay(image_HW3, mask_HW, color), title_of_pick)
    if attention_HW is not None:
        _show(axes[1, 0], image_HW3, "GEM map and position prior")
        axes[1, 0].imshow(attention_HW, cmap="inferno", alpha=0.65)
    _show_candidates(axes[1, 1], image_HW3, proposals, prediction)
    _write_scores(axes[1, 2], prediction)
    _write_expression(axes[1, 3], prediction)
    figure.suptitle(_cut(title), fontsize=13, parse_math=False)
    return _png(figure)


@dataclass(frozen=True, slots=True, eq=False)
class GalleryItem:
    """One image of a gallery.

    Attributes:
        image_HW3: RGB, uint8, (H, W, 3).
        mask_HW: the pick, bool, (H, W).
        gt_mask_HW: its outline is drawn, bool, (H, W).
        expression: written above.
    """

    image_HW3: NDArray[np.uint8]
    mask_HW: NDArray[np.bool_]
    gt_mask_HW: NDArray[np.bool_]
    expression: str


def draw_gallery(items: Sequence[GalleryItem], *, columns: int = 4) -> bytes:
    """One image of many picks: the mask in blue, the truth outlined in green.

    Args:
        items: at least one.
        columns: images in a row.

    Returns:
        A PNG file.
    """
    rows = math.ceil(len(items) / columns)
    layout = ConstrainedLayoutEngine(h_pad=0.12)
    figure = Figure(figsize=(3.1 * columns, 3.1 * rows), layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, item in zip(axes.flat, items, strict=False):
        title = fill(_cut(item.expression), 30)
        _show(axis, overlay(item.image_HW3, item.mask_HW, GUIDED_COLOR), title)
        _outline(axis, item.gt_mask_HW, _TRUTH)
    return _png(figure)


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


def _outline(axis: Axes, mask_HW: NDArray[np.bool_], color: tuple[float, float, float]) -> None:
    """Contour of a mask, closed along the border of the image; none where the mask is empty."""
    if mask_HW.any():
        y, x = (np.clip(np.arange(-1, side + 1), -0.5, side - 0.5) for side in mask_HW.shape)
        axis.contour(x, y, np.pad(mask_HW, 1), levels=[0.5], colors=[color], linewidths=2)


def _show_candidates(
    axis: Axes, image_HW3: NDArray[np.uint8], proposals: Proposals, prediction: Prediction
) -> None:
    _show(axis, image_HW3, f"candidates of {len(proposals)} proposals")
    if prediction.choice is None:
        return
    for rank, index in enumerate(prediction.choice.candidates_K):
        x, y, w, h = proposals.boxes_xywh[index]
        color = _CANDIDATES[rank % len(_CANDIDATES)]
        _outline(axis, proposals.masks_NHW[index], color)
        axis.text(x + w / 2, y + h / 2, str(rank + 1), color="white", backgroundcolor=color)


def _write_scores(axis: Axes, prediction: Prediction) -> None:
    choice = prediction.choice
    if choice is None:
        best = [f"{value:9.2f}" for value in sorted(prediction.similarity_N, reverse=True)[:3]]
        text = "\n".join(["best similarities", *best]) if best else "no proposals"
        axis.text(0.0, 0.95, text, family="monospace", fontsize=9, va="top")
        return
    lines = ["     similarity  relation  coherence   final"]
    for rank, index in enumerate(choice.candidates_K):
        chosen = "*" if index == choice.pick else " "
        lines.append(
            f"{chosen}{rank + 1:>3}  {prediction.similarity_N[index]:9.2f} "
            f"{choice.relation_K[rank]:9.3f} {choice.coherence_N[index]:10.3f} "
            f"{choice.final_K[rank]:7.3f}"
        )
    axis.text(0.0, 0.95, "\n".join(lines), family="monospace", fontsize=8.5, va="top")


def _write_expression(axis: Axes, prediction: Prediction) -> None:
    expression = prediction.expression
    lines = [
        f"noun phrase  {_cut(expression.noun_phrase)}",
        f"other nouns  {_cut(', '.join(expression.other_noun_phrases)) or '-'}",
        f"position     {expression.position.value}",
        f"relation     {expression.relation.value}",
    ]
    text = "\n".join(lines)
    axis.text(0.0, 0.95, text, family="monospace", fontsize=9, va="top", parse_math=False)
