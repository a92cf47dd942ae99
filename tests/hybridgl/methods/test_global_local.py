"""Global-Local CLIP against slow loops over masks, with small random CLIPs of both kinds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hybridgl import views
from hybridgl.config import (
    CropBox,
    FusionConfig,
    FusionMode,
    GlobalLocalConfig,
    MaskedBlocksConfig,
    Profile,
    ReferenceQuirks,
    TextConfig,
)
from hybridgl.devices import CPU_BATCHES
from hybridgl.errors import SettingError, WeightsError
from hybridgl.fusion import mask_features
from hybridgl.images import RgbImage
from hybridgl.language import ParsedExpression, Position, Relation
from hybridgl.masks import Proposals
from hybridgl.methods.global_local import (
    GlobalLocalClip,
    crop_features,
    crop_views,
    global_features,
    mask_boxes,
    resized_image,
)
from hybridgl.store import Store
from tests.factories_clip import (
    clip_encoder,
    clip_state,
    models_of,
    resnet_clip_state,
    save_npz,
)

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
HW = (40, 56)


@pytest.fixture(scope="module")
def masks():
    """A large one, one pixel, one row, one column, a whole image, and a scattered one."""
    masks_NHW = np.zeros((6, *HW), dtype=bool)
    masks_NHW[0, 3:30, 10:50] = True
    masks_NHW[1, 39, 55] = True
    masks_NHW[2, 7, 5:40] = True
    masks_NHW[3, 2:33, 0] = True
    masks_NHW[4] = True
    masks_NHW[5] = np.random.default_rng(0).random(HW) < 0.05
    return torch.from_numpy(masks_NHW)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (*HW, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["transformer", "resnet"])
def encoder(request):
    return clip_encoder(clip_state() if request.param == "transformer" else resnet_clip_state())


def slow_box(mask_HW):
    ys, xs = np.nonzero(mask_HW)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def slow_freesolo_box(mask_HW):
    """Compute FreeSOLO's box, an axis at a time, in the floats of its formula."""
    starts, stops = [], []
    for places in map(np.flatnonzero, (mask_HW.any(axis=0), mask_HW.any(axis=1))):
        start, stop = (int(places.mean() + sign * len(places) / 2) for sign in (-1, 1))
        starts.append(start)
        stops.append(max(stop, start + 1))
    return [*starts, *stops]


BOXES = {CropBox.TIGHT: slow_box, CropBox.FREESOLO: slow_freesolo_box}


def slow_crop(image_3HW, mask_HW, side, fill, crop_box):
    """Fill, cut and resize one mask's image with the library function for each."""
    x1, y1, x2, y2 = BOXES[crop_box](mask_HW.numpy())
    filled = torch.where(mask_HW, image_3HW, torch.tensor(fill)[:, None, None])
    return F.interpolate(
        filled[None, :, y1:y2, x1:x2], (side, side), mode="bilinear", align_corners=False
    )[0]


def test_boxes_hold_every_pixel_and_end_outside(masks):
    assert mask_boxes(masks).tolist() == [slow_box(mask) for mask in masks.numpy()]


@pytest.mark.parametrize("crop_box", CropBox)
def test_box_of_an_empty_mask_is_a_pixel(crop_box):
    assert mask_boxes(torch.zeros(1, 3, 5, dtype=torch.bool), crop_box).tolist() == [[0, 0, 1, 1]]


def test_freesolo_boxes_equal_their_formula(masks):
    boxes = mask_boxes(masks, CropBox.FREESOLO)
    assert boxes.tolist() == [slow_freesolo_box(mask) for mask in masks.numpy()]


def test_freesolo_boxes_lie_a_pixel_left_and_up_and_leave_out_the_ends_of_gaps():
    masks_NHW = np.zeros((3, 20, 30), dtype=bool)
    masks_NHW[0, 5:9, 10:20] = True
    masks_NHW[1, 5:9, [10, 11, 19]] = True
    masks_NHW[2, 0, 0] = True
    boxes = mask_boxes(torch.from_numpy(masks_NHW), CropBox.FREESOLO)
    assert boxes.tolist() == [[9, 4, 19, 8], [11, 4, 14, 8], [0, 0, 1, 1]]


@pytest.mark.parametrize("crop_box", CropBox)
@pytest.mark.parametrize("unnormalised_fill", [True, False])
def test_crops_equal_a_loop_over_masks(masks, unnormalised_fill, crop_box):
    image_3HW = torch.randn(3, *HW, generator=torch.Generator().manual_seed(0))
    fill = MEAN.tolist() if unnormalised_fill else [0.0, 0.0, 0.0]
    crops = crop_views(image_3HW, masks, 32, unnormalised_fill=unnormalised_fill, crop_box=crop_box)
    expected = torch.stack([slow_crop(image_3HW, mask, 32, fill, crop_box) for mask in masks])
    assert torch.allclose(crops, expected, rtol=0, atol=1e-6)


def test_image_has_its_shorter_side_at_800_and_imagenets_statistics(image):
    image = Image.fromarray(image)
    for shown, size in ((image, (1120, 800)), (image.transpose(Image.ROTATE_90), (800, 1120))):
        resized = resized_image(shown)
        expected = np.asarray(shown.resize(size, Image.BILINEAR)) / 255
        assert np.allclose(resized.permute(1, 2, 0), (expected - MEAN) / STD, atol=1e-6)


def test_longer_side_is_rounded_down():
    assert resized_image(Image.new("RGB", (300, 301))).shape == (3, 802, 800)


def test_transformer_gates_patches_before_its_last_blocks(masks):
    clip = clip_encoder(clip_state())
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    coverage = views.patch_coverage(masks, clip.grid)
    with torch.inference_mode():
        features = global_features(clip, image, coverage, 9)
        config = FusionConfig(fusion_mode=FusionMode.TOKEN_MASKING, masking_block=9)
        for row, gate_1P in enumerate(coverage[:, None]):
            expected = mask_features(
                clip.visual,
                image,
                image,
                gate_1P,
                config,
                attention_masking_skips_last_block=True,
            )
            assert torch.allclose(features[row], expected[0], rtol=0, atol=2e-6)
        plain = clip.encode_images(image)
        whole = global_features(clip, image, torch.ones(1, clip.grid**2), 9)
    assert torch.allclose(whole, plain, rtol=0, atol=1e-5)


def test_resnet_gates_its_last_feature_map_in_length_1(masks):
    clip = clip_encoder(resnet_clip_state())
    tower = clip.resnet
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    coverage = views.patch_coverage(masks, clip.grid)
    with torch.inference_mode():
        features = global_features(clip, image, coverage, 9)
        x = tower.stem(image)
        for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            x = layer(x)
        for row in range(len(masks)):
            gated = torch.zeros_like(x)
            for place in range(4):
                vector = x[0, :, place // 2, place % 2]
                gated[0, :, place // 2, place % 2] = vector / vector.norm() * coverage[row, place]
            assert torch.allclose(features[row], tower.attnpool(gated)[0], rtol=0, atol=2e-6)


def test_crop_features_of_a_resnet_have_length_1(encoder):
    crops = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = crop_features(encoder, crops)
    with torch.inference_mode():
        plain = encoder.encode_images(crops)
    expected = F.normalize(plain, dim=-1) if encoder.resnet else plain
    assert torch.equal(features, expected)


# The method as a whole


def expression(sentence, noun_phrase):
    return ParsedExpression(
        sentence, noun_phrase, "cat", ("a dog",), ("dog",), Position.LEFT, Relation.LEFT
    )


EXPRESSIONS = [expression("the cat left of a dog", "the cat"), expression("a cat", "a cat")]
SENTENCES = [expression.sentence for expression in EXPRESSIONS]


def model_of(tmp_path, kind, store=None, **settings):
    state = clip_state() if kind == "transformer" else resnet_clip_state()
    path = save_npz(tmp_path / f"{kind}.npz", state)
    config = GlobalLocalConfig(**settings).resolved("refcoco")
    return GlobalLocalClip(models_of(path, EXPRESSIONS), config, store)


def proposals_of(masks):
    count = len(masks)
    ones = np.ones(count, dtype=np.float32)
    return Proposals(masks.numpy(), np.ones((count, 4), dtype=np.int64), ones, ones)


@pytest.mark.parametrize("crop_box", CropBox)
@pytest.mark.parametrize("kind", ["transformer", "resnet"])
def test_similarity_equals_the_formula(tmp_path, image, masks, kind, crop_box):
    text = TextConfig(sentence_weight=0.3)
    model = model_of(tmp_path, kind, mixing_weight=0.7, text=text, crop_box=crop_box)
    clip = model.clip
    scaled = resized_image(Image.fromarray(image))[None]
    image_3HW = F.interpolate(scaled, HW, mode="bilinear", align_corners=False)[0]
    image_64 = F.interpolate(scaled, (64, 64), mode="bilinear", align_corners=False)
    crops = torch.stack([slow_crop(image_3HW, mask, 64, MEAN.tolist(), crop_box) for mask in masks])
    with torch.inference_mode():
        in_image = global_features(clip, image_64, views.patch_coverage(masks, clip.grid), 9)
        features = 0.7 * in_image + 0.3 * crop_features(clip, crops)
    scored = model.score(RgbImage(image), SENTENCES, proposals_of(masks))
    for read, scores in zip(EXPRESSIONS, scored, strict=True):
        sentence, phrase = clip.encode_texts([read.sentence, read.noun_phrase])
        if kind == "resnet":
            text = 0.3 * sentence / sentence.norm() + 0.7 * phrase / phrase.norm()
            expected = clip.logit_scale * features @ text
        else:
            text = 0.3 * sentence + 0.7 * phrase
            expected = clip.logit_scale * F.cosine_similarity(features, text[None])
        similarity_N = scores.arrays["similarity_N"]
        assert np.allclose(similarity_N, expected, rtol=0, atol=1e-3)
        prediction = model.choose(scores)
        assert prediction.proposals == {"features": int(similarity_N.argmax())}
        assert prediction.scores == {"features": similarity_N.max()}
        assert prediction.expression == read
        assert (prediction.choice, prediction.attention, prediction.truncated) == (
            None,
            None,
            False,
        )


def test_image_without_proposals_has_no_prediction(tmp_path, image):
    model = model_of(tmp_path, "transformer")
    for scores in model.score(RgbImage(image), SENTENCES, Proposals.empty(HW)):
        prediction = model.choose(scores)
        assert prediction.proposals == {}
        assert len(prediction.similarity_N) == 0


def test_permuted_proposals_permute_the_scores(tmp_path, image, masks):
    model = model_of(tmp_path, "transformer")
    order = [4, 0, 5, 2, 1, 3]
    plain = model.score(RgbImage(image), SENTENCES, proposals_of(masks))
    permuted = model.score(RgbImage(image), SENTENCES, proposals_of(masks[order]))
    for one, other in zip(plain, permuted, strict=True):
        assert np.allclose(
            one.arrays["similarity_N"][order], other.arrays["similarity_N"], rtol=0, atol=1e-4
        )


def test_chunks_do_not_matter(tmp_path, image, masks):
    model = model_of(tmp_path, "transformer")
    whole = model.features(RgbImage(image), proposals_of(masks))
    model.models.batches.sizes = dataclasses.replace(CPU_BATCHES, masks=2)
    assert torch.allclose(
        model.features(RgbImage(image), proposals_of(masks)), whole, rtol=0, atol=1e-5
    )


def test_store_serves_another_mixing_weight_but_not_another_fill(tmp_path, image, masks):
    store = Store(tmp_path / "store")
    image, proposals = RgbImage(image), proposals_of(masks)
    first = model_of(tmp_path, "transformer", store, mixing_weight=1.0)
    first.features(image, proposals)
    other = model_of(tmp_path, "transformer", store, mixing_weight=0.5)
    fresh = model_of(tmp_path, "transformer", mixing_weight=0.5)
    assert torch.equal(other.features(image, proposals), fresh.features(image, proposals))
    assert store.misses["global-local"] == 1
    corrected = ReferenceQuirks.of(Profile.CORRECTED)
    model_of(tmp_path, "transformer", store, quirks=corrected).features(image, proposals)
    assert store.misses["global-local"] == 2


def test_crop_fill_is_the_only_quirk_that_moves_features(tmp_path, image, masks):
    image, proposals = RgbImage(image), proposals_of(masks)
    model = model_of(tmp_path, "transformer")
    plain = model.features(image, proposals)
    for quirk in dataclasses.fields(ReferenceQuirks):
        quirks = ReferenceQuirks(**{quirk.name: False})
        other = GlobalLocalClip(model.models, dataclasses.replace(model.config, quirks=quirks))
        same = torch.equal(other.features(image, proposals), plain)
        assert same == (quirk.name != "crop_unnormalised_fill")


def test_transformer_with_too_few_blocks_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"at least 13 vision blocks.*got 12.*--masking_block"):
        model_of(tmp_path, "transformer", blocks=MaskedBlocksConfig(masking_block=12)).clip  # noqa: B018


def test_features_without_a_mixing_weight_are_refused(tmp_path, image, masks):
    clip = save_npz(tmp_path / "clip.npz", clip_state())
    model = GlobalLocalClip(models_of(clip, EXPRESSIONS), GlobalLocalConfig())
    with pytest.raises(SettingError, match="Expected a mixing_weight, got None; give one"):
        model.score(RgbImage(image), SENTENCES, proposals_of(masks))


def test_settings_are_name_and_config():
    config = GlobalLocalConfig(mixing_weight=0.5)
    settings = GlobalLocalClip(models_of(None), config).settings()
    assert settings == {"name": "global_local", **config.json()}
    assert settings["mixing_weight"] == 0.5


@pytest.mark.parametrize("profile", list(Profile))
def test_only_quirk_8_leaves_samples_without_proposals_out(profile):
    config = GlobalLocalConfig(quirks=ReferenceQuirks.of(profile))
    model = GlobalLocalClip(models_of(None), config)
    assert model.skips_without_proposals == (profile is Profile.REFERENCE)
