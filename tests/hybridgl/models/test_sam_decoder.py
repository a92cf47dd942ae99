"""Prompts to SAM's mask decoder against segment_anything's own modules; nothing waits in it."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from benchmarks.gpu.operations import RecordOperations
from hybridgl.models.sam import build_tiny_sam
from hybridgl.models.sam_decoder import DecodedPoints, PointDecoder
from tests.pretend_gpu import PretendGpu

TOLERANCE = 1e-4
"""float32 against float32 in another order; logits and qualities are of the order of 10."""


def small_sam(*, grid, width, heads, masks, depth):
    side = 16 * grid
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=side, embed_dim=8, depth=1, num_heads=1, out_chans=width, use_rel_pos=True
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(side, side),
            mask_in_chans=4,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(
                depth=depth, embedding_dim=width, num_heads=heads, mlp_dim=2 * width
            ),
            num_multimask_outputs=masks,
            iou_head_hidden_dim=width,
        ),
    )


SAMS = {
    "tiny": build_tiny_sam,
    "one layer": lambda: small_sam(grid=3, width=16, heads=2, masks=3, depth=1),
    "three layers": lambda: small_sam(grid=5, width=32, heads=4, masks=3, depth=3),
    "two masks": lambda: small_sam(grid=4, width=16, heads=1, masks=2, depth=2),
    "wide": lambda: small_sam(grid=8, width=256, heads=8, masks=3, depth=2),
}


@pytest.fixture(scope="module", params=SAMS.values(), ids=SAMS)
def sam(request):
    """Random weights, norms and biases included; masks far from zero."""
    torch.manual_seed(0)
    sam = request.param().eval().requires_grad_(False)
    for name, value in sam.named_parameters():
        if "norm" in name or name.endswith(".bias") or "output_upscaling.1" in name:
            value.add_(0.3 * torch.randn_like(value))
    for layer in sam.mask_decoder.output_hypernetworks_mlps:
        layer.layers[-1].weight.mul_(50)
    return sam


@pytest.fixture
def embedding(sam):
    width, grid = sam.mask_decoder.transformer_dim, sam.prompt_encoder.image_embedding_size[0]
    return torch.randn(width, grid, grid, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def points(sam):
    """Corners, edges and the middle of the input, and places between."""
    side = sam.image_encoder.img_size
    fixed = [(0, 0), (side, 0), (0, side), (side, side), (side / 2, side / 2), (0.25, side - 0.25)]
    between = side * torch.rand(11, 2, generator=torch.Generator().manual_seed(2)).double()
    return torch.cat([torch.tensor(fixed, dtype=torch.float64), between])


def of_the_library(sam, embedding, points):
    sparse, dense = sam.prompt_encoder(
        points=(points[:, None], torch.ones(len(points), 1, dtype=torch.int)),
        boxes=None,
        masks=None,
    )
    logits, iou = sam.mask_decoder(
        image_embeddings=embedding[None],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    return sparse, logits, iou


def of_ours(sam, embedding, points):
    decoder = PointDecoder(sam, embedding)
    prompts = decoder.embed(points)
    decoded = decoder.decode(prompts)
    return prompts, decoder.logits(decoded), decoded.iou_QM


def assert_close(got, expected, tolerance=TOLERANCE):
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_prompts_get_the_librarys_tokens_logits_and_qualities(sam, embedding, points):
    expected = of_the_library(sam, embedding, points)
    assert expected[1].std() > 1
    assert_close(of_ours(sam, embedding, points), expected)


def test_prompts_of_a_gpu_get_the_same(sam, embedding, points):
    expected = of_the_library(sam, embedding, points)
    with PretendGpu():
        got = of_ours(sam, embedding, points)
    assert_close(got, expected)


@pytest.mark.parametrize("at_once", [1, 4, 16])
def test_prompts_in_chunks_get_what_they_get_together(sam, embedding, points, at_once):
    _, logits, iou = of_ours(sam, embedding, points)
    decoder = PointDecoder(sam, embedding)
    chunks = [decoder.decode(some) for some in decoder.embed(points).split(at_once)]

    parts = torch.cat([decoder.logits(chunk) for chunk in chunks])

    assert_close((parts, torch.cat([chunk.iou_QM for chunk in chunks])), (logits, iou))


def test_masks_are_drawn_of_any_choice_of_prompts(sam, embedding, points):
    decoder = PointDecoder(sam, embedding)
    decoded = decoder.decode(decoder.embed(points))
    rows = torch.tensor([7, 0, 3])
    some = DecodedPoints(decoded.iou_QM[rows], decoded.weights_QME[rows], decoded.places_QPC[rows])
    torch.testing.assert_close(
        decoder.logits(some), decoder.logits(decoded)[rows], atol=TOLERANCE, rtol=0
    )


def test_a_prompt_does_not_depend_on_the_others(sam, embedding, points):
    whole = of_ours(sam, embedding, points)
    backwards = of_ours(sam, embedding, points.flip(0))
    assert_close([part.flip(0) for part in backwards], whole)


def test_a_decoder_is_of_its_image_alone(sam, embedding, points):
    """Both images' decoders exist at once, as where crops are encoded in one batch."""
    other = embedding.flip(1)
    decoders = [PointDecoder(sam, image) for image in (embedding, other)]
    for decoder, image in zip(decoders, (embedding, other), strict=True):
        decoded = decoder.decode(decoder.embed(points))
        expected = of_the_library(sam, image, points)
        assert_close((decoder.logits(decoded), decoded.iou_QM), expected[1:])


def test_decoding_changes_neither_image_nor_weights_nor_prompts(sam, embedding, points):
    before = [part.clone() for part in (embedding, points, *sam.parameters())]
    decoder = PointDecoder(sam, embedding)
    prompts = decoder.embed(points)
    kept = prompts.clone()

    first = decoder.decode(prompts)
    drawn = decoder.logits(first)
    again = decoder.decode(prompts)

    assert torch.equal(prompts, kept)
    assert torch.equal(drawn, decoder.logits(first))
    assert torch.equal(first.iou_QM, again.iou_QM)
    assert torch.equal(first.places_QPC, again.places_QPC)
    now = (embedding, points, *sam.parameters())
    assert all(torch.equal(*pair) for pair in zip(now, before, strict=True))


def test_masks_lie_row_by_row_as_the_image_does(sam, points):
    """An image mirrored at its diagonal, positions apart, has its quarters in another order."""
    grid = sam.prompt_encoder.image_embedding_size[0]
    width = sam.mask_decoder.transformer_dim
    embedding = torch.zeros(width, grid, grid)
    embedding[:, 0] = 5 * torch.randn(width, 1, generator=torch.Generator().manual_seed(3))
    _, logits, _ = of_the_library(sam, embedding, points)
    _, got, _ = of_ours(sam, embedding, points)

    assert got.shape[-2:] == (4 * grid, 4 * grid)
    torch.testing.assert_close(got, logits, atol=TOLERANCE, rtol=0)
    assert (got - got.transpose(2, 3)).abs().max() > 1


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x[0]),
        lambda x: bool(x[0] > 1),
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: x.masked_select(x > 1),
        lambda x: x.unique(),
        lambda x: x.clone().masked_scatter_(x > 1, x)[x > 1],
        lambda x: x.clone().index_put_((x > 1,), torch.ones(2)),
        lambda x: torch.where(x > 1),
        lambda x: torch.argwhere(x > 1),
        lambda x: x.split([int(x[1]), 3]),
    ],
)
def test_the_recorder_notices_what_a_host_waits_for(wait, inference):
    """The oracle of the next test: it would see a wait if there were one."""
    with torch.inference_mode(inference), RecordOperations() as record:
        wait(torch.arange(4.0))
    assert record.waiting


def test_the_recorder_lets_pass_what_no_host_waits_for():
    x, places = torch.arange(4.0), torch.tensor([1, 2])
    with RecordOperations() as record:
        _ = x[places].sum() + torch.where(x > 1, x, 0).max()
    assert "index" in record.names
    assert not record.waiting


@pytest.mark.parametrize("inference", [True, False])
def test_nothing_waits_while_prompts_are_decoded_and_drawn(sam, embedding, points, inference):
    decoder = PointDecoder(sam, embedding)
    prompts = decoder.embed(points)

    with torch.inference_mode(inference), PretendGpu(), RecordOperations() as record:
        decoder.logits(decoder.decode(prompts))

    assert record.names.count("native_layer_norm") > 4
    assert not record.waiting
