"""Attention maps against self-self attention in loops and against Pillow's antialiased resize."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgl.config import GemConfig
from hybridgl.gem import attention_map, gem_input, min_max, patch_features, patch_similarity
from hybridgl.views import CLIP_MEAN, CLIP_STD
from tests.clip_oracle import SlowVision
from tests.factories_clip import clip_encoder, clip_state

TOLERANCE = 5e-5
"""float32 against float64; depth or iterations one off differ by far more."""


@pytest.fixture(scope="module")
def state():
    """Sharp enough for one iteration more or less to show."""
    return clip_state(sharpness=2.0)


@pytest.fixture(scope="module")
def visual(state):
    return clip_encoder(state).visual


@pytest.fixture
def images():
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(5))


def random_similarities(count=3, side=4):
    return torch.rand(count, side, side, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize(("depth", "iterations"), [(7, 1), (4, 1), (7, 2), (7, 0), (13, 1)])
def test_patch_features_equal_the_formula(state, visual, images, depth, iterations):
    got = patch_features(visual, images, GemConfig(depth=depth, iterations=iterations))
    assert got.shape == (2, 64, 64)
    slow = SlowVision(state)
    for image, patches in zip(images, got, strict=True):
        expected = slow.gem_patches(image, depth=depth, iterations=iterations)
        torch.testing.assert_close(patches, expected.float(), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("other", [GemConfig(depth=6), GemConfig(iterations=2)])
def test_depth_and_iterations_matter(visual, images, other):
    plain = patch_features(visual, images, GemConfig())
    assert (plain - patch_features(visual, images, other)).abs().max() > 20 * TOLERANCE


def test_without_replaced_blocks_patches_are_those_of_the_plain_encoder(state, visual, images):
    got = patch_features(visual, images[:1], GemConfig(depth=1))
    slow = SlowVision(state)
    tokens = slow.embed(images[0])
    for index in range(12):
        tokens = slow.block(index, tokens)
    expected = torch.nn.functional.normalize(slow.project(tokens)[1:], dim=-1)
    torch.testing.assert_close(got[0], expected.float(), atol=TOLERANCE, rtol=0)


def test_patch_features_have_length_one(visual, images):
    lengths = patch_features(visual, images, GemConfig()).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(2, 64))


def test_images_of_a_batch_do_not_mix(visual, images):
    together = patch_features(visual, images, GemConfig())
    alone = torch.cat([patch_features(visual, image[None], GemConfig()) for image in images])
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=0)


def test_input_is_the_whole_frame_in_clips_statistics():
    image = Image.new("RGB", (30, 10), (255, 0, 51))
    got = gem_input(image, 8)
    assert got.shape == (3, 8, 8)
    assert got.dtype is torch.float32
    for channel, value in enumerate((1.0, 0.0, 0.2)):
        expected = (value - CLIP_MEAN[channel]) / CLIP_STD[channel]
        torch.testing.assert_close(got[channel], torch.full((8, 8), expected))


def test_input_is_resized_bicubically_by_pillow():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 14, 3), dtype=np.uint8))
    resized = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    expected = (resized - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(gem_input(image, 32).permute(1, 2, 0), expected, atol=1e-5)


def test_patch_similarities_are_cosines_row_by_row():
    generator = torch.Generator().manual_seed(1)
    patches = torch.nn.functional.normalize(torch.randn(9, 5, generator=generator), dim=-1)
    phrases = 7 * torch.randn(2, 5, generator=generator)
    maps = patch_similarity(patches, phrases)
    assert maps.shape == (2, 3, 3)
    for phrase in range(2):
        for row, column in np.ndindex(3, 3):
            patch = patches[3 * row + column]
            cosine = (phrases[phrase] @ patch) / phrases[phrase].norm()
            assert maps[phrase, row, column] == pytest.approx(float(cosine), abs=1e-6)


def test_map_of_a_phrase_does_not_depend_on_the_others():
    patches = torch.nn.functional.normalize(torch.randn(9, 5), dim=-1)
    phrases = torch.randn(3, 5)
    together = patch_similarity(patches, phrases)
    torch.testing.assert_close(together[1:2], patch_similarity(patches, phrases[1:2]))
    maps = attention_map(together, 24, (20, 30))
    torch.testing.assert_close(maps[1:2], attention_map(together[1:2], 24, (20, 30)))


def test_no_phrase_gives_no_map():
    maps = patch_similarity(torch.eye(4), torch.zeros(0, 4))
    assert maps.shape == (0, 2, 2)


@pytest.mark.parametrize("hw", [(20, 37), (90, 61), (5, 7)])
def test_attention_map_is_enlarged_scaled_and_resized_as_pillow_does(hw):
    sims = random_similarities()
    maps = attention_map(sims, 64, hw)
    assert maps.shape == (3, *hw)
    for sim, attention in zip(sims.numpy(), maps, strict=True):
        enlarged = np.asarray(Image.fromarray(sim).resize((64, 64), Image.Resampling.BILINEAR))
        scaled = (enlarged - enlarged.min()) / (enlarged.max() - enlarged.min())
        resized = Image.fromarray(scaled).resize(hw[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(attention, np.asarray(resized), atol=1e-5)


def test_the_last_resize_is_antialiased():
    sims = random_similarities(1, 16)
    antialiased = attention_map(sims, 64, (4, 4))
    enlarged = min_max(attention_map(sims, 64, (64, 64)))
    four_pixels = torch.nn.functional.interpolate(enlarged[:, None], (4, 4), mode="bilinear")[:, 0]
    assert (antialiased - four_pixels).abs().max() > 0.05


def test_attention_map_spans_zero_to_one_at_the_size_of_the_input():
    maps = attention_map(random_similarities(), 64, (64, 64))
    torch.testing.assert_close(maps.amin(dim=(1, 2)), torch.zeros(3))
    torch.testing.assert_close(maps.amax(dim=(1, 2)), torch.ones(3))


def test_each_phrase_is_scaled_to_its_own_range():
    sims = random_similarities()
    scaled = torch.stack([3 * sims[0] - 5, sims[1], sims[2]])
    torch.testing.assert_close(
        attention_map(scaled, 32, (9, 9)), attention_map(sims, 32, (9, 9)), atol=1e-5, rtol=0
    )


def test_high_patch_is_high_at_its_place_in_the_image():
    sim = torch.zeros(1, 4, 4)
    sim[0, 1, 3] = 1
    attention = attention_map(sim, 64, (40, 80))[0]
    row, column = divmod(int(attention.argmax()), 80)
    assert 10 <= row < 20
    assert 60 <= column < 80


def test_map_without_contrast_is_zero():
    assert (attention_map(torch.full((1, 4, 4), 0.3), 64, (10, 12)) == 0).all()


def test_min_max_by_hand():
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[4.0, 4.0], [4.0, 4.0]]])
    expected = [[[0, 0.5], [0.25, 1]], [[0, 0], [0, 0]]]
    assert min_max(maps).tolist() == expected


@pytest.mark.parametrize("config", [GemConfig(), GemConfig(depth=13), GemConfig(depth=1)])
def test_images_and_weights_stay_as_they_are(visual, images, config):
    before = images.clone()
    weights = {name: value.clone() for name, value in visual.state_dict().items()}
    first = patch_features(visual, images, config)
    assert torch.equal(patch_features(visual, images, config), first)
    assert torch.equal(images, before)
    assert all(torch.equal(visual.state_dict()[name], old) for name, old in weights.items())


def test_patches_of_a_map_are_told_from_phrases():
    """As many phrases as patches: neither is taken for the other."""
    generator = torch.Generator().manual_seed(2)
    patches = torch.nn.functional.normalize(torch.randn(4, 6, generator=generator), dim=-1)
    maps = patch_similarity(patches, 3 * patches.flip(0))
    highest = maps.flatten(1).argmax(dim=1)
    assert highest.tolist() == [3, 2, 1, 0]
