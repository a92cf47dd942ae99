"""SAM's image encoder against segment_anything's own, and its attention against double loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import window_partition, window_unpartition

from hybridgl.models import sam_encoder
from hybridgl.models.sam import build_tiny_sam
from hybridgl.models.sam_encoder import encode, relative_attention
from hybridgl.models.transformer import set_product_dtype
from tests.pretend_gpu import PretendGpu

TOLERANCE = 2e-5
"""float32 against float32 in another order; embeddings are of the order of 1."""


def randomised(encoder, seed=0):
    """With positions and norms that are not zeros and ones, as a trained encoder's are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if "pos" in name or "norm" in name or name.endswith(".bias"):
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return encoder.eval().requires_grad_(False)


def small_encoder(*, grid=7, window=5, globally=(1,), absolute=True, depth=3, heads=2):
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=4 * grid,
        patch_size=4,
        embed_dim=12,
        depth=depth,
        num_heads=heads,
        out_chans=8,
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=globally,
        use_abs_pos=absolute,
    )
    return randomised(encoder)


def random_images(size, side):
    return torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(1))


def assert_encodes_as_the_library(encoder, images):
    with torch.inference_mode():
        expected = encoder(images)
        got = encode(encoder, images)
    assert got.dtype is torch.float32
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
    return got


PATHS = {
    "as set": {},
    "one row of a head at a time": {"_CACHED_SCORES": 1},
    "some rows of a head at a time": {"_CACHED_SCORES": 2 * 4 * 7 * 49},
}


@pytest.fixture(params=PATHS.values(), ids=PATHS)
def path(request, monkeypatch):
    for name, value in request.param.items():
        monkeypatch.setattr(sam_encoder, name, value)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.usefixtures("path")
def test_the_tiny_encoder_gives_what_the_library_does(size):
    torch.manual_seed(0)
    encoder = randomised(build_tiny_sam().image_encoder)
    assert_encodes_as_the_library(encoder, random_images(size, 256))


WINDOWS = {
    "padded": {"grid": 7, "window": 5},
    "padded by all but one": {"grid": 7, "window": 3},
    "fitting": {"grid": 6, "window": 3},
    "as large as the grid": {"grid": 5, "window": 5},
    "larger than the grid": {"grid": 4, "window": 6},
    "of one place": {"grid": 5, "window": 1},
    "nowhere": {"grid": 5, "window": 0},
    "everywhere": {"globally": ()},
    "but never": {"globally": (0, 1, 2)},
    "one head": {"heads": 1},
}


@pytest.mark.parametrize("absolute", [True, False], ids=["absolute positions", "relative only"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.usefixtures("path")
def test_windows_of_any_size_give_what_the_library_does(windows, size, absolute):
    encoder = small_encoder(absolute=absolute, **windows)
    assert_encodes_as_the_library(encoder, random_images(size, encoder.img_size))


@pytest.mark.parametrize("biases", [2**29, 2 * 49 * 49 * 2, 1], ids=["all", "two", "one by one"])
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_a_gpus_attention_gives_what_the_library_does(windows, biases, monkeypatch):
    monkeypatch.setattr(sam_encoder, "_BIAS_SCORES", biases)
    encoder = small_encoder(**windows)
    images = random_images(3, encoder.img_size)
    with torch.inference_mode():
        expected = encoder(images)
        with PretendGpu():
            got = encode(encoder, images)
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_images_of_a_batch_do_not_mix():
    encoder, images = small_encoder(), random_images(3, 28)
    together = encode(encoder, images)
    for image, embedding in zip(images, together, strict=True):
        alone = encode(encoder, image[None])[0]
        torch.testing.assert_close(alone, embedding, atol=TOLERANCE, rtol=0)


def test_encoding_changes_neither_images_nor_weights():
    encoder, images = small_encoder(), random_images(2, 28)
    before = images.clone()
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}

    encode(encoder, images)

    assert torch.equal(images, before)
    assert all(torch.equal(encoder.state_dict()[name], old) for name, old in weights.items())


@pytest.mark.usefixtures("path")
def test_bfloat16_products_give_nearly_the_same_float32_embedding():
    encoder, images = small_encoder(), random_images(2, 28)
    exact = encode(encoder, images)
    set_product_dtype(encoder.modules(), torch.bfloat16)

    rounded = encode(encoder, images)
    with PretendGpu():
        on_gpu = encode(encoder, images)

    for got in (rounded, on_gpu):
        assert got.dtype is torch.float32
        cosines = torch.cosine_similarity(got, exact, dim=1)
        assert 0.999 < cosines.min() < 0.999999


def slow_relative_attention(q, k, v, rows, columns):
    """Query by query and key by key, in double precision."""
    q, k, v, rows, columns = (part.double() for part in (q, k, v, rows, columns))
    side, out = len(rows), torch.zeros_like(q)
    for batch, head in itertools.product(range(len(q)), range(q.shape[1])):
        queries, keys, values = q[batch, head], k[batch, head], v[batch, head]
        for query, vector in enumerate(queries):
            row, column = divmod(query, side)
            scores = []
            for key, other in enumerate(keys):
                key_row, key_column = divmod(key, side)
                score = vector @ other / len(vector) ** 0.5
                score = score + vector @ rows[row, key_row] + vector @ columns[column, key_column]
                scores.append(score)
            out[batch, head, query] = torch.stack(scores).softmax(dim=0) @ values
    return out


@pytest.fixture(scope="module")
def attention():
    """Two windows of five by five places, three heads; and what comes out."""
    generator = torch.Generator().manual_seed(2)
    # As the encoder has them: parts of one tensor, not contiguous.
    joined = torch.randn(2, 25, 3, 3, 4, generator=generator)
    q, k, v = (part.transpose(1, 2) for part in joined.unbind(dim=2))
    rows, columns = torch.randn(2, 5, 5, 4, generator=generator)
    return (q, k, v, rows, columns), slow_relative_attention(q, k, v, rows, columns)


def path_taken(monkeypatch):
    taken = []
    for name in ("_attend_with_bias", "_attend_window_by_window", "_attend_head_by_head"):
        original = getattr(sam_encoder, name)

        def record(*args, name=name, original=original):
            taken.append(name)
            return original(*args)

        monkeypatch.setattr(sam_encoder, name, record)
    return taken


HEAD_ROW = 5 * 25
"""Scores of one row of queries of one head."""


@pytest.mark.parametrize(
    ("cached", "way"),
    [
        (3 * 25 * 25, "_attend_window_by_window"),
        (3 * 25 * 25 - 1, "_attend_head_by_head"),
        (2 * 5 * HEAD_ROW, "_attend_head_by_head"),
        (2 * 3 * HEAD_ROW, "_attend_head_by_head"),
        (2 * 2 * HEAD_ROW + 1, "_attend_head_by_head"),
        (2 * HEAD_ROW, "_attend_head_by_head"),
        (1, "_attend_head_by_head"),
    ],
    ids=[
        "windows",
        "all rows of a head",
        "5 rows",
        "3 + 2 rows",
        "2 + 2 + 1 rows",
        "1 row",
        "least",
    ],
)
def test_relative_attention_on_a_cpu_is_the_formula(attention, cached, way, monkeypatch):
    monkeypatch.setattr(sam_encoder, "_CACHED_SCORES", cached)
    taken = path_taken(monkeypatch)
    inputs, expected = attention

    got = relative_attention(*inputs)

    assert taken == [way]
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("biases", [1, 3 * 25 * 25, 2**29], ids=["least", "one window", "as set"])
def test_relative_attention_on_a_gpu_is_the_formula(attention, biases, monkeypatch):
    monkeypatch.setattr(sam_encoder, "_BIAS_SCORES", biases)
    taken = path_taken(monkeypatch)
    inputs, expected = attention

    with PretendGpu():
        got = relative_attention(*inputs)

    assert taken == ["_attend_with_bias"]
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cached", [2**22, 2 * 3 * HEAD_ROW, 1])
def test_relative_attention_in_bfloat16_is_close_to_the_formula(attention, cached, monkeypatch):
    monkeypatch.setattr(sam_encoder, "_CACHED_SCORES", cached)
    (q, k, v, *positions), expected = attention
    heads = [part.bfloat16() for part in (q, k, v)]

    got = relative_attention(*heads, *positions)
    with PretendGpu():
        on_gpu = relative_attention(*heads, *positions)

    for one in (got, on_gpu):
        assert one.dtype is torch.bfloat16
        assert (one.double() - expected).abs().mean() < 0.02
        assert (one.double() - expected).abs().max() < 0.2


@pytest.mark.parametrize("cached", [2**22, 2 * 3 * HEAD_ROW])
def test_relative_attention_leaves_its_inputs_as_they_are(attention, cached, monkeypatch):
    monkeypatch.setattr(sam_encoder, "_CACHED_SCORES", cached)
    inputs, _ = attention
    before = [part.clone() for part in inputs]

    relative_attention(*inputs)

    assert all(torch.equal(*pair) for pair in zip(inputs, before, strict=True))


def test_rows_and_columns_are_told_apart(attention):
    (q, k, v, rows, columns), expected = attention
    swapped = relative_attention(q, k, v, columns, rows)
    assert (swapped.double() - expected).abs().max() > 0.1


def test_a_position_is_the_querys_place_less_the_keys():
    embedding = torch.arange(5.0)[:, None]
    expected = [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    assert sam_encoder._relative(embedding, 3)[..., 0].tolist() == expected


@pytest.mark.parametrize(("grid", "window"), [(7, 5), (6, 3), (4, 6), (5, 5), (9, 2), (1, 4)])
def test_windows_are_those_of_the_library_and_come_back(grid, window):
    x = torch.arange(2.0 * grid * grid * 3).reshape(2, grid, grid, 3)
    expected, padded_hw = window_partition(x, window)

    windows = sam_encoder._to_windows(x, window)

    assert torch.equal(windows, expected)
    marked = windows * 2
    back = sam_encoder._from_windows(marked, 2, grid)
    assert torch.equal(back, window_unpartition(marked, window, padded_hw, (grid, grid)))
    assert torch.equal(back, 2 * x)
