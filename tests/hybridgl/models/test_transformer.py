"""Parts of transformer blocks against slow formulas in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridgl.models import transformer
from hybridgl.models.transformer import (
    linear,
    mlp,
    patch_tokens,
    quick_gelu_,
    set_product_dtype,
)
from tests.pretend_gpu import PretendGpu

LEAST = transformer._LEAST_ROWS
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}
"""Results are of the order of 1; sums are of a few hundred products at most."""


@pytest.fixture
def normal():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


def calls_of(monkeypatch, name):
    """Counts calls of one of torch's functions that the module makes."""
    calls = []
    original = getattr(F, name)

    def counted(*args, **kwargs):
        calls.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(transformer.F, name, counted)
    return calls


def slow_linear(x, weight, bias=None):
    out = x.double() @ weight.double().T
    return out if bias is None else out + bias.double()


def assert_close(got, expected, dtype=torch.float32):
    assert got.dtype is dtype
    assert got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected.double(), atol=TOLERANCE[dtype], rtol=0)


SHAPES = {
    "a row": (1,),
    "one less than are filled up to": (LEAST - 1,),
    "as many": (LEAST,),
    "one more": (LEAST + 1,),
    "three axes": (3, 47),
    "four axes": (2, 5, 7, 3),
    "an axis of one": (LEAST, 1),
    "a bare vector": (),
}


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("widths", [(24, 40), (7, 13), (1, 5), (5, 1)], ids=str)
@pytest.mark.parametrize("leading", SHAPES.values(), ids=SHAPES)
def test_a_linear_layer_is_the_product_in_double_precision(normal, leading, widths, with_bias):
    wide, narrow = widths
    x, weight = normal(*leading, wide), normal(narrow, wide) / wide**0.5
    bias = normal(narrow) if with_bias else None

    assert_close(linear(x, weight, bias), slow_linear(x, weight, bias))


@pytest.mark.parametrize("shape", [(0, 6), (3, 0, 6), (0, LEAST, 6)], ids=str)
def test_a_linear_layer_takes_no_rows(normal, shape):
    assert linear(torch.zeros(shape), normal(4, 6), normal(4)).shape == (*shape[:-1], 4)


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 1),
    "every other column": lambda x: x[..., ::2],
    "every other row": lambda x: x[::2],
    "expanded": lambda x: x[:1].expand(20, -1, -1),
    "channels last": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "offset": lambda x: x[1:, 3:, 1:],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_of_a_linear_layer_may_lie_anywhere_in_memory(normal, layout):
    x = layout(normal(20, 30, 12))
    weight, bias = normal(9, x.shape[-1]), normal(9)

    assert_close(linear(x, weight, bias), slow_linear(x, weight, bias))
    assert_close(linear(x, weight.T.contiguous().T, bias), slow_linear(x, weight, bias))


@pytest.mark.parametrize("rows", [5, LEAST + 5])
def test_a_linear_layer_leaves_its_input_as_it_is(normal, rows):
    x, weight, bias = normal(rows, 6), normal(4, 6), normal(4)
    before = [part.clone() for part in (x, weight, bias)]

    linear(x, weight, bias).zero_()

    assert all(torch.equal(*pair) for pair in zip((x, weight, bias), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [5, LEAST + 5])
def test_weights_decide_the_number_format_of_a_linear_layer(normal, rows, dtype):
    x, weight, bias = normal(rows, 6), normal(4, 6).to(dtype) / 6, normal(4).to(dtype)

    got = linear(x, weight, bias)

    assert torch.equal(got, F.linear(x.to(dtype), weight, bias))
    assert got.dtype is dtype
    assert linear(x.to(dtype), weight.float(), bias.float()).dtype is torch.float32


def test_only_float32_on_a_cpu_is_convolved(normal, monkeypatch):
    convolved = calls_of(monkeypatch, "conv2d")
    x, weight = normal(LEAST, 6), normal(4, 6)

    for rows in (x, x[1:], x.bfloat16()):
        linear(rows, weight)
    assert len(convolved) == 3
    linear(x, weight.bfloat16())
    linear(x, weight.double())
    with PretendGpu():
        linear(x, weight)
    assert len(convolved) == 3


def two_layers(widths=(6, 20, 6)):
    torch.manual_seed(0)
    first, middle, last = widths
    return nn.Linear(first, middle), nn.Linear(middle, last)


@pytest.mark.parametrize("chunk", [4, 1024], ids=["chunks of 4", "one chunk"])
@pytest.mark.parametrize(
    "leading", [(1,), (3,), (4,), (5,), (8,), (9,), (2, 6), (3, 1, 3)], ids=str
)
def test_an_mlp_is_its_two_layers_with_chunks_or_without(normal, monkeypatch, leading, chunk):
    monkeypatch.setattr(transformer, "_MLP_ROWS", chunk)
    up, down = two_layers()
    x = normal(*leading, 6)

    with torch.no_grad():
        got = mlp(x, up, torch.tanh_, down)

    middle = slow_linear(x, up.weight, up.bias).tanh()
    assert_close(got, slow_linear(middle, down.weight, down.bias).detach())


def test_an_mlp_of_more_rows_than_a_chunk_is_that_of_each_row(normal):
    up, down = two_layers()
    x = normal(transformer._MLP_ROWS + LEAST - 1, 6)

    with torch.no_grad():
        got = mlp(x, up, quick_gelu_, down)
        alone = torch.cat([mlp(row[None], up, quick_gelu_, down) for row in x])

    assert_close(got, alone)


def test_an_mlp_sees_rows_in_chunks_on_a_cpu_and_all_at_once_on_a_gpu(normal, monkeypatch):
    monkeypatch.setattr(transformer, "_MLP_ROWS", 4)
    up, down = two_layers()
    seen = []

    def activation_(rows):
        seen.append(len(rows))
        return rows

    with torch.no_grad():
        mlp(normal(2, 5, 6), up, activation_, down)
        assert seen == [4, 4, 2]
        with PretendGpu():
            mlp(normal(2, 5, 6), up, activation_, down)
            assert mlp(normal(0, 5, 6), up, activation_, down).shape == (0, 5, 6)
    assert seen == [4, 4, 2, 10, 0]


def test_an_mlp_takes_no_rows_and_leaves_its_input_as_it_is(normal):
    up, down = two_layers()
    x = normal(2, 3, 6)
    before = x.clone()
    with torch.no_grad():
        assert mlp(x[:0], up, quick_gelu_, down).shape == (0, 3, 6)
        mlp(x, up, quick_gelu_, down).zero_()
    assert torch.equal(x, before)


def test_an_mlp_of_bfloat16_weights_gives_bfloat16(normal):
    up, down = (layer.bfloat16() for layer in two_layers())
    x = normal(3, 6)
    with torch.no_grad():
        got = mlp(x, up, quick_gelu_, down)
    middle = slow_linear(x, up.weight, up.bias)
    middle = middle * torch.sigmoid(1.702 * middle)
    assert_close(got, slow_linear(middle, down.weight, down.bias).detach(), torch.bfloat16)


def test_quick_gelu_is_its_formula_in_place():
    x = torch.linspace(-30, 30, 1001)
    expected = x.double() * torch.sigmoid(1.702 * x.double())

    got = quick_gelu_(x)

    assert got.data_ptr() == x.data_ptr()
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-6)


def test_quick_gelu_of_bfloat16_is_off_by_two_roundings_at_most():
    x = torch.linspace(-8, 8, 257).bfloat16()
    expected = x.double() * torch.sigmoid(1.702 * x.double())
    got = quick_gelu_(x.clone())
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got.double(), expected, atol=2**-8, rtol=2**-7)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("size", "side", "patch"), [(2, 12, 4), (3, 48, 4), (1, 16, 16), (1, 5, 1)]
)
def test_patch_tokens_are_a_convolution_row_by_row(normal, size, side, patch, with_bias):
    images, kernel = normal(size, 3, side, side), normal(10, 3, patch, patch) / (2 * patch)
    bias = normal(10) if with_bias else None

    got = patch_tokens(images, kernel, bias)

    double_bias = None if bias is None else bias.double()
    expected = F.conv2d(images.double(), kernel.double(), double_bias, stride=patch)
    assert_close(got, expected.permute(0, 2, 3, 1))


def test_patch_tokens_have_the_number_format_of_the_kernel(normal):
    kernel = normal(10, 3, 4, 4).bfloat16()
    assert patch_tokens(normal(1, 3, 8, 8), kernel).dtype is torch.bfloat16


def test_patches_must_fill_the_image(normal):
    with pytest.raises(RuntimeError, match="don't multiply up to the size"):
        patch_tokens(normal(1, 3, 10, 10), normal(5, 3, 4, 4))


def test_only_linear_and_attention_layers_get_another_number_format():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(3))
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv2d(4, 4, 1))

    parts = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 8),
            "attention": nn.MultiheadAttention(4, 2),
            "norm": nn.LayerNorm(4),
            "words": nn.Embedding(5, 4),
            "own": Own(),
        }
    )

    set_product_dtype(parts.modules(), torch.bfloat16)

    narrow = {name for name, p in parts.named_parameters() if p.dtype is torch.bfloat16}
    assert narrow == {
        "linear.weight",
        "linear.bias",
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        "attention.out_proj.weight",
        "attention.out_proj.bias",
        "own.inner.0.weight",
        "own.inner.0.bias",
    }
    assert {p.dtype for p in parts.parameters()} == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("rows", [1, 127, 128, 300])
def test_products_lie_in_memory_row_by_row(normal, rows):
    """Otherwise oneDNN copies, and what follows reads against the grain."""
    assert transformer.linear(normal(rows, 24), normal(40, 24)).is_contiguous()
