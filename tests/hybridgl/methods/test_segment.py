"""Odd images and expressions through ``segment``: a finite result, or an error that says why."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgl.config import HybridGLConfig
from hybridgl.errors import HybridGLError
from hybridgl.images import MAX_ASPECT_RATIO
from hybridgl.masks import Proposals, mask_boxes_xywh
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.models import Models, load
from hybridgl.weights.registry import weight_set
from tests.factories_clip import clip_state, save_npz


class FourQuarters:
    """Stands for SAM: the quarters of any image that has them, at most ``most``."""

    def __init__(self, most=4):
        self.most = most

    def propose(self, image_HW3):
        height, width, _ = image_HW3.shape
        rows, columns = np.indices((height, width))
        upper, left = rows < height // 2, columns < width // 2
        quarters = [upper & left, upper & ~left, ~upper & left, ~upper & ~left]
        masks_NHW = np.stack([quarter for quarter in quarters if quarter.any()])[: self.most]
        ones_N = np.ones(len(masks_NHW), np.float32)
        return Proposals(masks_NHW, mask_boxes_xywh(masks_NHW), ones_N, ones_N)

    def submit(self, images, _config):
        return [partial(self.propose, image_HW3) for image_HW3 in images]


@pytest.fixture(scope="module")
def method_of(tmp_path_factory):
    """Makes the method on a random CLIP, with masks of something else than SAM."""
    path = save_npz(tmp_path_factory.mktemp("clip") / "clip.npz", clip_state())
    models = Models(weight_set("tiny", clip_weights=path), device=torch.device("cpu"))

    def make(sam=None):
        own = Models(models.weights, device=models.device)
        own.clip, own.parser = models.clip, models.parser
        if sam is not None:
            own.sam = sam
        return HybridGL(own, HybridGLConfig())

    return make


@pytest.fixture(scope="module")
def method(method_of):
    return method_of(FourQuarters())


@pytest.fixture
def colours() -> Image.Image:
    """Blocks of random colours, 32 x 24 pixels."""
    blocks = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    return Image.fromarray(np.kron(blocks, np.ones((6, 8, 1))).astype(np.uint8))


def assert_same_result(first, second):
    np.testing.assert_array_equal(first.mask, second.mask)
    np.testing.assert_array_equal(first.scores, second.scores)
    np.testing.assert_array_equal(first.attention_map, second.attention_map)


def test_path_pil_image_and_array_give_the_same(method, colours, tmp_path):
    colours.save(tmp_path / "a.png")
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), colours, np.array(colours)]
    first, *others = method.segment_all(sources, ["the red block"] * 4)
    for other in others:
        assert_same_result(first, other)


@pytest.mark.parametrize("hw", [(1, 1), (2, 1), (3, 5), (1, MAX_ASPECT_RATIO), (400, 4)])
def test_extreme_shapes_give_a_result(method_of, hw):
    """Through SAM itself, whose own preprocessing has to cope with them."""
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    result = method_of().segment(pixels_HW3, "the red star on the left")
    assert result.mask.shape == result.attention_map.shape == hw
    assert np.isfinite(result.attention_map).all()
    assert np.isfinite(result.scores).all()


@pytest.mark.parametrize("expression", ["", "  \t\n", "\N{NO-BREAK SPACE}", None, 3])
def test_empty_expression_is_refused(method, colours, expression):
    with pytest.raises(HybridGLError, match="Expected an expression in words, got"):
        method.segment(colours, expression)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("x" * 10**6, r"at most 10,000 characters, got one of 1,000,000, 'xxx.*shorten it"),
        ("red \ud83d star", "in valid Unicode"),
    ],
    ids=["a million characters", "half a character"],
)
def test_expression_that_cannot_be_parsed_is_refused(method, colours, expression, message):
    with pytest.raises(HybridGLError, match=message):
        method.segment(colours, expression)


@pytest.mark.parametrize(
    "expression",
    [
        "the red star " * 33,
        "左边的红色圆圈",
        "la estrella roja a la izquierda",
        "🔴⭐ on the left",
        "?!...",
        "{} {0} %s",
        "a\0b",
        "\N{ZERO WIDTH SPACE}",
        "the red\nstar",
    ],
)
def test_odd_expression_gives_a_result(method, colours, expression):
    result = method.segment(colours, expression)
    assert result.mask.any()
    assert result.expression.noun_phrase
    assert np.isfinite(result.scores).all()


def test_long_expression_is_cut_and_counted(method_of, colours, caplog):
    method = method_of(FourQuarters())
    method.models.clip = load("clip", method.models.weights.clip_weights, device="cpu")
    method.segment(colours, "the red star " * 33)
    assert method.clip.num_truncated > 0
    assert "longer than CLIP's 77 tokens" in caplog.text


def test_nothing_to_segment_gives_nothing(method):
    assert method.segment_all([], []) == []


def test_no_proposals_give_an_empty_mask(method_of):
    grey_HW3 = np.full((64, 96, 3), 128, np.uint8)
    result = method_of().segment(grey_HW3, "the red star on the left")
    assert not result.mask.any()
    assert not result.features_mask.any()
    assert (result.box, result.candidates, len(result.scores)) == (None, (), 0)
    assert result.attention_map.shape == (64, 96)


@pytest.mark.parametrize("most", [1, 2])
def test_fewer_masks_than_candidates(method_of, colours, most):
    result = method_of(FourQuarters(most)).segment(colours, "the star left of the dot")
    assert len(result.candidates) == len(result.scores) == most
    assert result.mask.any()


def test_constant_attention_favours_no_mask(method_of, colours, monkeypatch):
    method = method_of(FourQuarters())
    monkeypatch.setattr(
        method, "patch_similarity", lambda _, phrases: torch.full((len(phrases), 8, 8), 0.25)
    )
    result = method.segment(colours, "the star on the left")
    assert not result.attention_map.any()
    assert {candidate.coherence for candidate in result.candidates} == {0.0}
    best = max(result.candidates, key=lambda candidate: candidate.relation)
    np.testing.assert_array_equal(result.mask, best.mask)
