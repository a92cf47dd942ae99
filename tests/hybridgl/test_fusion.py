"""Mask features against CLIP written out one mask at a time, and against open_clip's own blocks."""

from __future__ import annotations

import pytest
import torch

from hybridgl.config import FusionConfig, FusionMode
from hybridgl.fusion import mask_features
from tests.clip_oracle import SlowVision
from tests.factories_clip import clip_encoder, clip_state

MODES = list(FusionMode)
TOLERANCE = 1e-5
"""float32 against float64 through twelve blocks; the features are of the order of 1."""


@pytest.fixture(scope="module")
def state():
    return clip_state()


@pytest.fixture(scope="module")
def visual(state):
    return clip_encoder(state).visual


@pytest.fixture(scope="module")
def single_block():
    return clip_encoder(clip_state(blocks=1)).visual


@pytest.fixture
def inputs():
    """Local views, global views and coverage of four masks: two random, an empty and a full one."""
    generator = torch.Generator().manual_seed(3)
    views = torch.randn(2, 4, 3, 64, 64, generator=generator)
    coverage = torch.rand(4, 16, generator=generator)
    coverage = torch.where(coverage < 0.5, 0.0, coverage - 0.49)
    coverage[2], coverage[3] = 0, 1
    return views[0], views[1], coverage


def features(visual, inputs, mode, *, block=9, weight=2.0, skips=True):
    config = FusionConfig(fusion_mode=mode, masking_block=block, stream_weight=weight)
    with torch.inference_mode():
        return mask_features(visual, *inputs, config, attention_masking_skips_last_block=skips)


@pytest.mark.parametrize("block", [9, 7, 0])
@pytest.mark.parametrize("mode", MODES)
def test_features_equal_one_mask_at_a_time(state, visual, inputs, mode, block):
    slow = SlowVision(state)
    got = features(visual, inputs, mode, block=block)
    assert got.shape == (4, 64)
    assert got.dtype is torch.float32
    for row, one in enumerate(zip(*inputs, strict=True)):
        expected = slow.mask_feature(mode.value, *one, first=block)
        torch.testing.assert_close(got[row], expected.float(), atol=TOLERANCE, rtol=0)


def test_weight_of_the_added_stream_is_the_configured_one(state, visual, inputs):
    slow = SlowVision(state)
    for mode in (FusionMode.GLOBAL_TO_LOCAL, FusionMode.LOCAL_TO_GLOBAL, FusionMode.BOTH):
        got = features(visual, inputs, mode, weight=0.5)[0]
        one = [part[0] for part in inputs]
        expected = slow.mask_feature(mode.value, *one, first=9, weight=0.5)
        torch.testing.assert_close(got, expected.float(), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("skips", [True, False], ids=["Q3 reference", "Q3 corrected"])
def test_attention_masking_ends_before_or_after_the_last_block(state, visual, inputs, skips):
    slow = SlowVision(state)
    got = features(visual, inputs, FusionMode.ATTENTION_MASKING, skips=skips)
    one = [part[0] for part in inputs]
    expected = slow.mask_feature("attn_masking", *one, first=9, skips=skips)
    other = slow.mask_feature("attn_masking", *one, first=9, skips=not skips)
    torch.testing.assert_close(got[0], expected.float(), atol=TOLERANCE, rtol=0)
    assert (got[0] - other).abs().max() > 0.1


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.value != "attn_masking"])
def test_other_modes_do_not_heed_q3(visual, inputs, mode):
    assert torch.equal(
        features(visual, inputs, mode, skips=True), features(visual, inputs, mode, skips=False)
    )


def test_crop_is_the_plain_image_encoder(visual, inputs):
    with torch.inference_mode():
        expected = visual(inputs[0])
    torch.testing.assert_close(
        features(visual, inputs, FusionMode.CROP), expected, atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("mode", [FusionMode.ATTENTION_MASKING, FusionMode.TOKEN_MASKING])
def test_mask_over_all_patches_changes_nothing(visual, inputs, mode):
    local, global_, coverage = inputs
    full = (local, global_, torch.ones_like(coverage))
    torch.testing.assert_close(
        features(visual, full, mode, skips=False),
        features(visual, full, FusionMode.CROP),
        atol=TOLERANCE,
        rtol=0,
    )


def test_true_in_torchs_mask_means_a_blocked_pair(visual, inputs):
    """The last block through ``nn.MultiheadAttention``, where True means "may not be seen"."""
    local, _, coverage = inputs
    got = features(visual, inputs, FusionMode.ATTENTION_MASKING, block=11, skips=False)
    patches = visual.conv1(local).flatten(2).transpose(1, 2)
    start = visual.class_embedding.expand(len(local), 1, -1)
    x_NTD = visual.ln_pre(torch.cat([start, patches], dim=1) + visual.positional_embedding)
    *trunk, last = visual.transformer.resblocks
    for block in trunk:
        x_NTD = block(x_NTD)
    for row, covered in enumerate(coverage):
        blocked_TT = torch.zeros(17, 17, dtype=torch.bool)
        blocked_TT[0, 1:] = covered == 0
        x_1TD = x_NTD[row : row + 1]
        normed = last.ln_1(x_1TD)
        attended, _ = last.attn(normed, normed, normed, attn_mask=blocked_TT)
        x_1TD = x_1TD + attended
        x_1TD = x_1TD + last.mlp(last.ln_2(x_1TD))
        expected = visual.ln_post(x_1TD[0, 0]) @ visual.proj
        torch.testing.assert_close(got[row], expected, atol=TOLERANCE, rtol=0)


def repaint_patches(views, patches):
    """The views with the patches, of 16 x 16 pixels on a grid of 4 x 4, in other colours."""
    repainted = views.clone()
    for patch in patches:
        row, column = divmod(patch, 4)
        repainted[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] *= -1
    return repainted


@pytest.mark.parametrize(
    ("mode", "reads_local", "reads_global"),
    [
        (FusionMode.TOKEN_MASKING, True, False),
        (FusionMode.ATTENTION_MASKING, True, False),
        (FusionMode.LOCAL_TO_GLOBAL, True, True),
    ],
)
def test_class_token_reads_patches_of_the_mask_only(
    single_block, inputs, mode, reads_local, reads_global
):
    local, global_, coverage = inputs
    coverage = coverage[:1].expand(4, -1)
    inside = coverage[0].nonzero()[0].tolist()
    outside = (coverage[0] == 0).nonzero().flatten().tolist()
    assert outside

    def one_block(local, global_):
        return features(single_block, (local, global_, coverage), mode, block=0, skips=False)

    plain = one_block(local, global_)
    hidden = one_block(repaint_patches(local, outside), repaint_patches(global_, outside))
    assert torch.equal(plain, hidden)
    for reads, seen in (
        (reads_local, one_block(repaint_patches(local, inside), global_)),
        (reads_global, one_block(local, repaint_patches(global_, inside))),
    ):
        assert ((plain - seen).abs().max() > 1e-3) == reads


def test_mask_without_patch_leaves_the_class_token_to_itself(single_block, inputs):
    local, global_, coverage = inputs
    nothing = torch.zeros_like(coverage)
    got = features(
        single_block,
        (local, global_, nothing),
        FusionMode.ATTENTION_MASKING,
        block=0,
        skips=False,
    )
    assert torch.equal(got, got[:1].expand(4, -1))


@pytest.mark.parametrize("mode", MODES)
def test_mask_without_coverage_gives_finite_features(visual, inputs, mode):
    assert features(visual, inputs, mode).isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_permuted_masks_give_permuted_features(visual, inputs, mode):
    order = torch.tensor([2, 0, 3, 1])
    permuted = features(visual, [part[order] for part in inputs], mode)
    torch.testing.assert_close(
        permuted, features(visual, inputs, mode)[order], atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("mode", MODES)
def test_size_of_a_chunk_does_not_matter(visual, inputs, mode):
    one_by_one = [features(visual, [part[i : i + 1] for part in inputs], mode) for i in range(4)]
    torch.testing.assert_close(
        torch.cat(one_by_one), features(visual, inputs, mode), atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("mode", MODES)
def test_no_masks_give_no_features(visual, inputs, mode):
    assert features(visual, [part[:0] for part in inputs], mode).shape == (0, 64)


@pytest.mark.parametrize("mode", MODES)
def test_same_mask_twice_gives_the_same_feature(visual, inputs, mode):
    twice = [part[[1, 1]] for part in inputs]
    first, second = features(visual, twice, mode)
    torch.testing.assert_close(first, second, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_single_masked_block_equals_one_mask_at_a_time(state, visual, inputs, mode, skips):
    """No block between: the first masked one is the last, of which the class token is all."""
    block = 10 if mode is FusionMode.ATTENTION_MASKING and skips else 11
    slow = SlowVision(state)
    got = features(visual, inputs, mode, block=block, skips=skips)
    for row, one in enumerate(zip(*inputs, strict=True)):
        expected = slow.mask_feature(mode.value, *one, first=block, skips=skips)
        torch.testing.assert_close(got[row], expected.float(), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_inputs_and_weights_stay_as_they_are(visual, inputs, mode):
    before = [part.clone() for part in inputs]
    weights = {name: value.clone() for name, value in visual.state_dict().items()}
    first = features(visual, inputs, mode)
    assert torch.equal(features(visual, inputs, mode), first)
    assert all(torch.equal(*pair) for pair in zip(inputs, before, strict=True))
    assert all(torch.equal(visual.state_dict()[name], old) for name, old in weights.items())
