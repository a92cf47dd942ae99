"""Images as people hand them over: the right RGB pixels, or one error that says what came."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hybridgl.errors import ImageError
from hybridgl.images import MAX_ASPECT_RATIO, RgbImage
from tests.refer_factories import png_that_claims, with_orientation


@pytest.fixture
def colours() -> Image.Image:
    """Blocks of random colours, 32 x 24 pixels."""
    blocks = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    return Image.fromarray(np.kron(blocks, np.ones((6, 8, 1))).astype(np.uint8))


def test_path_pil_image_and_array_have_the_same_pixels(colours, tmp_path):
    colours.save(tmp_path / "a.png")
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), colours, np.array(colours)]
    for source in sources:
        np.testing.assert_array_equal(RgbImage(source).pixels_HW3, np.array(colours))


@pytest.mark.parametrize(
    ("convert", "extension"),
    [
        (lambda image: image.convert("L"), "png"),
        (lambda image: image.convert("1"), "png"),
        (lambda image: image.convert("LA"), "png"),
        (lambda image: image.convert("RGBA"), "png"),
        (lambda image: image.quantize(16), "png"),
        (lambda image: image.quantize(16), "gif"),
        (lambda image: image.convert("CMYK"), "tif"),
        (lambda image: image.convert("YCbCr"), "tif"),
    ],
    ids=["greyscale", "bilevel", "grey and alpha", "RGBA", "palette", "GIF", "CMYK", "YCbCr"],
)
def test_kinds_of_images_have_the_pixels_of_their_rgb_version(
    colours, convert, extension, tmp_path
):
    image = convert(colours)
    path = tmp_path / f"image.{extension}"
    image.save(path)
    with Image.open(path) as opened:
        expected_HW3 = np.array(opened.convert("RGB"))
        for source in (path, opened):
            np.testing.assert_array_equal(RgbImage(source).pixels_HW3, expected_HW3)


@pytest.mark.parametrize("kind", ["RGBA", "palette", "palette of bytes"])
def test_transparent_parts_are_laid_over_white(kind, tmp_path):
    red_and_clear = Image.new("RGBA", (8, 4), (0, 200, 0, 0))
    red_and_clear.paste((200, 0, 0, 255), (0, 0, 4, 4))
    image = red_and_clear
    if kind != "RGBA":
        image = Image.new("P", (8, 4), 1)
        image.putpalette([200, 0, 0, 0, 200, 0])
        image.paste(0, (0, 0, 4, 4))
        image.info["transparency"] = 1 if kind == "palette" else bytes([255, 0])
    image.save(tmp_path / "a.png")
    pixels_HW3 = RgbImage(tmp_path / "a.png").pixels_HW3
    assert pixels_HW3[:, :4].reshape(-1, 3).tolist() == [[200, 0, 0]] * 16
    assert pixels_HW3[:, 4:].reshape(-1, 3).tolist() == [[255, 255, 255]] * 16


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    deep_HW = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(deep_HW).save(tmp_path / name)
        pixels_HW3 = RgbImage(tmp_path / name).pixels_HW3
        for channel in range(3):
            np.testing.assert_array_equal(pixels_HW3[..., channel].ravel(), np.arange(256))


def test_float_pixels_are_refused(tmp_path):
    Image.new("F", (8, 8), 0.5).save(tmp_path / "a.tif")
    with pytest.raises(
        ImageError, match=r"Expected integer pixels in .*a\.tif, got floats\. Convert"
    ):
        RgbImage(tmp_path / "a.tif").pixels_HW3  # noqa: B018


def test_images_that_differ_in_palette_alone_are_not_taken_for_one(colours):
    image = colours.quantize(16)
    other = image.copy()
    other.putpalette([255 - value for value in image.getpalette()])
    assert RgbImage(image).sha256 != RgbImage(other).sha256


def test_orientation_tag_turns_an_image_unless_it_is_of_a_dataset(colours):
    buffer = io.BytesIO()
    colours.save(buffer, "JPEG")
    with Image.open(io.BytesIO(with_orientation(buffer.getvalue(), 6))) as image:
        turned, stored = RgbImage(image), RgbImage(image, apply_orientation=False)
        assert turned.hw == stored.hw[::-1]
        np.testing.assert_array_equal(turned.pixels_HW3, np.rot90(stored.pixels_HW3, -1))


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "tif", "bmp", "webp"])
def test_truncated_image_is_refused_wherever_it_is_cut(colours, extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    colours.save(path)
    content = path.read_bytes()
    for share in (0.02, 0.1, 0.3, 0.5, 0.7):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ImageError, match=rf"Expected an? (whole )?image in {path}"):
            RgbImage(path).pixels_HW3  # noqa: B018


def test_truncated_pil_image_is_refused(colours):
    buffer = io.BytesIO()
    colours.save(buffer, "PNG")
    lazy = Image.open(io.BytesIO(buffer.getvalue()[:-40]))
    with pytest.raises(ImageError, match="Expected a whole image in the PIL image"):
        RgbImage(lazy)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.png", r"Expected an image at .*gone\.png, found no such file. Check the path"),
        (".", "cannot read it: Is a directory. Check the path"),
        ("a\0b", "cannot read it: embedded null byte"),
        (None, "Expected an image as a path, a PIL image .* got NoneType"),
        ([[0, 0, 0]], "got list"),
        (np.zeros((4, 4)), r"shape \(H, W, 3\) and dtype uint8, got \(4, 4\) float64. Convert"),
        (np.zeros((4, 4, 3)), r"got \(4, 4, 3\) float64"),
        (np.zeros((4, 4, 4), np.uint8), r"got \(4, 4, 4\) uint8"),
        (np.zeros((3, 4, 4), np.uint8), r"got \(3, 4, 4\) uint8"),
        (np.zeros((0, 4, 3), np.uint8), "Expected an image with pixels in the array, got 4 x 0"),
        (np.zeros((1, 1000, 3), np.uint8), "at most 100 to 1 in the array, got 1000 x 1 pixels"),
        (np.zeros((1000, 1, 3), np.uint8), "at most 100 to 1 in the array, got 1 x 1000 pixels"),
    ],
)
def test_source_that_is_no_image_is_refused(source, message):
    with pytest.raises(ImageError, match=message):
        RgbImage(source)


def test_gigapixels_are_refused_without_being_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(png_that_claims(60_000, 60_000))
    with pytest.raises(ImageError, match="Expected an image of at most 50,000,000 pixels"):
        RgbImage(tmp_path / "a.png")


def test_longest_shape_that_is_taken_still_has_rows_in_the_input_of_sam():
    assert 256 / MAX_ASPECT_RATIO > 1
