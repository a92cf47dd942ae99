"""The mathematics on a GPU that is none: no tensor of the CPU meets one of the GPU.

Fake tensors have a device, a shape and a type, and no values. They refuse what a GPU would refuse.
"""

from __future__ import annotations

import contextlib

import open_clip
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu.attention import wide_keys
from benchmarks.gpu.operations import RecordOperations
from hybridgl import fusion, gem, guidance, views
from hybridgl.config import FusionConfig, FusionMode, GemConfig, ReferenceQuirks
from hybridgl.language import Position
from hybridgl.methods import global_local
from hybridgl.models import sam_encoder, sam_generator
from hybridgl.models.clip import ClipEncoder
from hybridgl.models.sam import build_tiny_sam
from hybridgl.models.sam_decoder import PointDecoder

HW = (48, 64)
GPU = torch.device("cuda")
WIDTH, GRID = 128, 4

pytestmark = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="this torch knows no GPU at all"
)


@contextlib.contextmanager
def fake_gpu():
    """What is made on a GPU inside is made of nothing."""
    kept = (views.channel_values, sam_generator._resampling)
    for function in kept:
        function.cache_clear()
    with FakeTensorMode(), torch.inference_mode():
        yield
    for function in kept:
        function.cache_clear()


@pytest.fixture(autouse=True)
def no_pinned_memory(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)


def sam_of(dtype):
    with GPU:
        sam = build_tiny_sam()
    for module in sam.image_encoder.modules():
        if isinstance(module, torch.nn.Linear):
            for name, weight in list(module.named_parameters()):
                setattr(module, name, torch.nn.Parameter(weight.to(dtype), requires_grad=False))
    return sam


def clip_of():
    vision = open_clip.CLIPVisionCfg(
        layers=3, width=WIDTH, head_width=64, patch_size=16, image_size=16 * GRID
    )
    text = open_clip.CLIPTextCfg(context_length=77, vocab_size=99, width=64, heads=1, layers=2)
    with GPU:
        return open_clip.CLIP(32, vision, text, quick_gelu=True).eval()


def on_gpu(*tensors):
    return all(tensor.device.type == "cuda" for tensor in tensors)


def test_fake_tensors_refuse_what_a_gpu_refuses():
    with fake_gpu(), pytest.raises(Exception, match=r"cuda.*cpu|cpu.*cuda"):
        torch.ones(2, device=GPU) + torch.ones(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sam_from_image_to_bits(dtype):
    with fake_gpu():
        sam = sam_of(dtype)
        embedded = sam_encoder.encode(sam.image_encoder, torch.randn(3, 3, 256, 256, device=GPU))
        assert embedded.dtype is torch.float32
        decoder = PointDecoder(sam, embedded[0])
        prompts = decoder.embed(torch.rand(5, 2, dtype=torch.float64, device=GPU))
        decoded = decoder.decode(prompts)
        low_Ngg = decoder.logits(decoded)[:, 0]
        crop = sam_generator._Crop((0, 0, HW[1], HW[0]), 0, torch.zeros(3, 192, 256))
        logits_Nhw = sam_generator._Upsampler(sam, crop, GPU)(low_Ngg)
        assert logits_Nhw.shape == (5, *HW)
        masks_Nhw = logits_Nhw > 0
        boxes_N4 = sam_generator._boxes(masks_Nhw)
        assert on_gpu(
            sam_generator._packed(masks_Nhw),
            sam_generator._stability(logits_Nhw, 0.0),
            sam_generator._near_inner_edge(boxes_N4, crop.box, HW),
        )


@pytest.mark.parametrize("mode", list(FusionMode))
def test_features_of_masks(mode):
    with fake_gpu():
        visual = clip_of().visual
        image_3HW = torch.zeros(3, *HW, dtype=torch.uint8, device=GPU)
        masks_NHW = torch.zeros(2, *HW, dtype=torch.bool, device=GPU)
        quirks, side = ReferenceQuirks(), 16 * GRID
        features_NE = fusion.mask_features(
            visual,
            views.local_views(image_3HW, masks_NHW, side, quirks),
            views.global_views(image_3HW, image_3HW, masks_NHW, side, quirks),
            views.patch_coverage(masks_NHW, GRID),
            FusionConfig(fusion_mode=mode, masking_block=1),
            attention_masking_skips_last_block=True,
        )
        assert on_gpu(features_NE)
        assert features_NE.shape == (2, 32)


def test_attention_maps_and_coherence():
    with fake_gpu():
        config = GemConfig(depth=3)
        image_13RR = torch.randn(1, 3, 32 * GRID, 32 * GRID, device=GPU)
        patches_1PE = gem.patch_features(clip_of().visual, image_13RR, config)
        sim_Sgg = gem.patch_similarity(patches_1PE[0], torch.randn(3, 32, device=GPU))
        priors = [
            guidance.position_prior(position, HW, vertical_priors_disabled=False)
            for position in (Position.LEFT, Position.DOWN, Position.NONE)
        ]
        maps_SHW = gem.attention_map(sim_Sgg, 32 * GRID, HW)
        weighted_SHW = guidance.weighted_attention(maps_SHW, priors)
        masks_NHW = torch.zeros(2, *HW, dtype=torch.bool, device=GPU)
        assert on_gpu(guidance.coherence_scores(weighted_SHW, masks_NHW, [1.0, 2.0, 1.0]))


def test_texts_and_global_local_clip():
    with fake_gpu():
        clip = ClipEncoder.__new__(ClipEncoder)
        clip._model, clip.device, clip.resnet, clip.grid = clip_of(), GPU, None, GRID
        tokens_LT, end_L = torch.zeros(4, 16, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
        masks_NHW = torch.zeros(2, *HW, dtype=torch.bool, device=GPU)
        crops_N3RR = global_local.crop_views(
            torch.rand(3, *HW, device=GPU), masks_NHW, 16 * GRID, unnormalised_fill=True
        )
        coverage_NP = views.patch_coverage(masks_NHW, GRID)
        image_13RR = torch.rand(1, 3, 16 * GRID, 16 * GRID, device=GPU)
        assert on_gpu(
            clip._encode_tokens(tokens_LT, end_L),
            global_local.crop_features(clip, crops_N3RR),
            global_local.global_features(clip, image_13RR, coverage_NP, 1),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_biases_of_attention_are_laid_out_once(dtype):
    """What is added up for the mask is its only copy: it is a hundred times its two parts."""
    with fake_gpu():
        q, k, v = (torch.randn(2, 3, 36, 8, device=GPU, dtype=dtype) for _ in range(3))
        rows, columns = (torch.randn(6, 6, 8, device=GPU) for _ in range(2))
        with RecordOperations() as recorded:
            found = sam_encoder.relative_attention(q, k, v, rows, columns)
        assert found.shape == q.shape
        assert found.dtype is dtype
        after = recorded.names[recorded.names.index("add") :]
        assert {"clone", "_unsafe_view"}.isdisjoint(after)
        assert wide_keys(q, k, v, rows, columns).shape == q.shape
