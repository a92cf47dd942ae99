"""Overlays by hand; figures with what their readers must be told; a lazy import."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hybridgl import guidance
from hybridgl.config import GuidanceConfig
from hybridgl.figures import (
    GT_RGB,
    PREDICTION_RGB,
    GalleryItem,
    draw_gallery,
    draw_prediction,
    overlay,
)
from hybridgl.language import ParsedExpression, Position, Relation
from hybridgl.masks import Proposals
from hybridgl.methods import Prediction

HW = (48, 64)


def square(top, left, side=12):
    mask_HW = np.zeros(HW, dtype=bool)
    mask_HW[top : top + side, left : left + side] = True
    return mask_HW


def outline(shown_HW3, rgb):
    return (shown_HW3 == np.array(rgb, dtype=np.uint8)).all(axis=-1)


@pytest.fixture
def image_HW3():
    return np.random.default_rng(0).integers(0, 250, (*HW, 3), dtype=np.uint8)


@pytest.fixture
def proposals():
    masks_NHW = np.stack([square(4, 4), square(20, 30), square(36, 52)])
    boxes_xywh = np.array([[4, 4, 11, 11], [30, 20, 11, 11], [52, 36, 11, 11]])
    ones_N = np.ones(3, dtype=np.float32)
    return Proposals(masks_NHW, boxes_xywh, ones_N, ones_N)


@pytest.fixture
def expression():
    return ParsedExpression(
        sentence="the red square",
        noun_phrase="the red square",
        head_noun="square",
        other_noun_phrases=(),
        other_nouns=(),
        position=Position.NONE,
        relation=Relation.NONE,
    )


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that was saved."""
    figures = []
    save = Figure.savefig

    def note(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", note)
    return figures


def test_object_keeps_its_colours_and_the_rest_fades_towards_light_grey(image_HW3):
    mask_HW = square(16, 20)
    shown_HW3 = overlay(image_HW3, mask_HW)
    np.testing.assert_array_equal(shown_HW3[mask_HW], image_HW3[mask_HW])
    rest_HW = ~mask_HW & ~outline(shown_HW3, PREDICTION_RGB)
    before, after = image_HW3[rest_HW].astype(float), shown_HW3[rest_HW].astype(float)
    assert after.std() < 0.35 * before.std()
    assert after.mean() > 180


def test_outlines_lie_outside_of_the_masks_and_side_by_side_where_both_agree(image_HW3):
    mask_HW = square(16, 20)
    shown_HW3 = overlay(image_HW3, mask_HW, mask_HW)
    np.testing.assert_array_equal(
        outline(shown_HW3, PREDICTION_RGB), square(15, 19, 14) & ~square(16, 20, 12)
    )
    np.testing.assert_array_equal(
        outline(shown_HW3, GT_RGB), square(14, 18, 16) & ~square(15, 19, 14)
    )


def test_both_outlines_are_seen_where_prediction_and_ground_truth_differ(image_HW3):
    shown_HW3 = overlay(image_HW3, square(4, 4), square(20, 30))
    np.testing.assert_array_equal(
        outline(shown_HW3, PREDICTION_RGB), square(3, 3, 14) & ~square(4, 4)
    )
    np.testing.assert_array_equal(
        outline(shown_HW3, GT_RGB), square(18, 28, 16) & ~square(19, 29, 14)
    )


def test_ground_truth_alone_fades_nothing(image_HW3):
    shown_HW3 = overlay(image_HW3, None, square(16, 20))
    changed_HW = (shown_HW3 != image_HW3).any(axis=-1)
    np.testing.assert_array_equal(changed_HW, outline(shown_HW3, GT_RGB))
    assert changed_HW.any()
    assert not outline(shown_HW3, PREDICTION_RGB).any()


def test_outline_is_closed_along_the_border_of_the_image(image_HW3):
    shown_HW3 = overlay(image_HW3, np.ones(HW, dtype=bool))
    border_HW = np.ones(HW, dtype=bool)
    border_HW[1:-1, 1:-1] = False
    np.testing.assert_array_equal(outline(shown_HW3, PREDICTION_RGB), border_HW)
    np.testing.assert_array_equal(shown_HW3[~border_HW], image_HW3[~border_HW])


def test_empty_prediction_fades_the_whole_image(image_HW3):
    empty_HW = np.zeros(HW, dtype=bool)
    shown_HW3 = overlay(image_HW3, empty_HW, empty_HW)
    assert shown_HW3.min() > 150
    assert not outline(shown_HW3, PREDICTION_RGB).any()
    assert not outline(shown_HW3, GT_RGB).any()


def test_overlay_leaves_its_input_alone(image_HW3):
    before_HW3 = image_HW3.copy()
    overlay(image_HW3, square(0, 0), square(1, 1))
    np.testing.assert_array_equal(image_HW3, before_HW3)


def test_panel_shows_every_variant_and_says_which_outline_is_which(
    image_HW3, proposals, expression, drawn
):
    similarity_N = np.array([3.0, 2.0, 1.0])
    choice = guidance.choose(
        similarity_N,
        None,
        np.array([0.0, 5.0, 0.0]),
        proposals.boxes_xywh.astype(float),
        Relation.NONE,
        GuidanceConfig(),
    )
    variants = ("features", "relations", "guided")
    prediction = Prediction(
        proposals={name: getattr(choice, name) for name in variants},
        expression=expression,
        similarity_N=similarity_N,
        choice=choice,
    )
    attention_HW = np.ones(HW, dtype=np.float32)
    png = draw_prediction(
        image_HW3, proposals, prediction, attention_HW, title="a title", gt_mask_HW=square(4, 4)
    )
    Image.open(io.BytesIO(png)).verify()
    (figure,) = drawn
    titles = {axis.get_title() for axis in figure.axes if axis.get_title()}
    assert titles == {
        "image",
        "ground truth",
        "mask features",
        "relations",
        "with guidance",
        "attention map and position prior",
        "3 candidates of 3 proposals",
    }
    panel = next(axis for axis in figure.axes if axis.get_title() == "with guidance")
    expected_HW3 = overlay(image_HW3, proposals.masks_NHW[choice.guided], square(4, 4))
    np.testing.assert_array_equal(panel.images[0].get_array(), expected_HW3)
    assert legend_of(figure) == LEGEND


def test_panel_without_proposals_or_ground_truth_is_drawn(image_HW3, expression, drawn):
    prediction = Prediction(expression=expression, similarity_N=np.zeros(0))
    draw_prediction(image_HW3, Proposals.empty(HW), prediction, None, title="$5 and 🔴")
    (figure,) = drawn
    titles = {axis.get_title() for axis in figure.axes if axis.get_title()}
    assert titles == {"image", "0 proposals"}
    assert "no proposals" in {text.get_text() for axis in figure.axes for text in axis.texts}


def test_panel_of_a_mask_that_was_no_proposal_is_drawn(image_HW3, drawn):
    prediction = Prediction(masks={"network": square(4, 4)})
    draw_prediction(image_HW3, Proposals.empty(HW), prediction, None, title="a network's")
    (figure,) = drawn
    shown = {axis.get_title(): axis.images[0].get_array() for axis in figure.axes if axis.images}
    assert set(shown) == {"image", "network"}
    np.testing.assert_array_equal(shown["network"], overlay(image_HW3, square(4, 4)))


def test_gallery_outlines_both_and_says_which_is_which(image_HW3, drawn):
    items = [GalleryItem(image_HW3, square(4, 4), square(20, 30), f"thing {n}") for n in range(5)]
    Image.open(io.BytesIO(draw_gallery(items))).verify()
    (figure,) = drawn
    shown = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in shown] == [f"thing {n}" for n in range(5)]
    expected_HW3 = overlay(image_HW3, square(4, 4), square(20, 30))
    np.testing.assert_array_equal(shown[0].images[0].get_array(), expected_HW3)
    assert legend_of(figure) == LEGEND


LEGEND = {
    "prediction, in its own colours; the rest is faded": PREDICTION_RGB,
    "ground truth": GT_RGB,
}


def legend_of(figure):
    (legend,) = figure.legends
    return {
        text.get_text(): tuple(round(255 * value) for value in line.get_color())
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }


def test_matplotlib_is_imported_when_a_figure_is_drawn():
    code = "import sys, hybridgl.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
