"""Images of any kind: the pixels of their RGB version, or one line that says what is wrong."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from hybridgl.errors import ImageError
from hybridgl.images import MAX_ASPECT_RATIO, RgbImage, resized


@pytest.fixture
def colours() -> Image.Image:
    """Blocks of random colours, 32 x 24 pixels."""
    blocks = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    return Image.fromarray(np.kron(blocks, np.ones((6, 8, 1))).astype(np.uint8))


def png_that_claims(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_path_pil_image_and_array_give_the_same_pixels(colours, tmp_path):
    colours.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), colours, np.array(colours)):
        image = RgbImage(source)
        np.testing.assert_array_equal(image.pixels_HW3, np.array(colours))
        assert image.hw == (24, 32)


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
    path = tmp_path / f"image.{extension}"
    convert(colours).save(path)
    with Image.open(path) as opened:
        expected = np.array(opened.convert("RGB"))
        for source in (path, opened):
            np.testing.assert_array_equal(RgbImage(source).pixels_HW3, expected)


@pytest.mark.parametrize("kind", ["RGBA", "palette", "palette of bytes"])
def test_transparent_parts_are_laid_over_white(kind, tmp_path):
    image = Image.new("RGBA", (8, 4), (0, 200, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 4, 4))
    if kind != "RGBA":
        image = Image.new("P", (8, 4), 1)
        image.putpalette([200, 0, 0, 0, 200, 0])
        image.paste(0, (0, 0, 4, 4))
        image.info["transparency"] = 1 if kind == "palette" else bytes([255, 0])
    image.save(tmp_path / "a.png")
    pixels_HW3 = RgbImage(tmp_path / "a.png").pixels_HW3
    assert pixels_HW3[:, :4].reshape(-1, 3).tolist() == [[200, 0, 0]] * 16
    assert pixels_HW3[:, 4:].reshape(-1, 3).tolist() == [[255, 255, 255]] * 16


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_to_eight(name, tmp_path):
    deep_HW = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(deep_HW).save(tmp_path / name)
    pixels_HW3 = RgbImage(tmp_path / name).pixels_HW3
    for channel in range(3):
        np.testing.assert_array_equal(pixels_HW3[..., channel].ravel(), np.arange(256))


def png_of_16_bits(values_HWC):
    """A PNG file of 16 bits a channel, which Pillow reads but does not write in colour."""
    height, width, channels = values_HWC.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    chunks = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff_of_16_bits(values_HW3, order):
    """A TIFF file of 16 bits a channel, the lowest or the highest byte first."""
    height, width, _ = values_HW3.shape
    pixels = values_HW3.astype(f"{order}u2").tobytes()
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, 8 + len(pixels)),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
    ]
    start = 8 + len(pixels) + 6
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    bits = struct.pack(f"{order}HHH", 16, 16, 16)
    tags = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + struct.pack(
            f"{order}I" if kind == 4 or count > 1 else f"{order}HH",
            *((value,) if kind == 4 or count > 1 else (value, 0)),
        )
        for tag, kind, count, value in entries
    )
    return head + pixels + bits + struct.pack(f"{order}H", len(entries)) + tags + bytes(4)


DEEP_FILES = {
    "grey PNG": lambda values: png_of_16_bits(values[..., :1]),
    "grey and alpha PNG": lambda values: png_of_16_bits(
        np.dstack([values[..., :1], np.full_like(values[..., :1], 65535)])
    ),
    "RGB PNG": png_of_16_bits,
    "RGBA PNG": lambda values: png_of_16_bits(
        np.dstack([values, np.full_like(values[..., :1], 65535)])
    ),
    "little-endian TIFF": lambda values: tiff_of_16_bits(values, "<"),
    "big-endian TIFF": lambda values: tiff_of_16_bits(values, ">"),
    "compressed TIFF": lambda values: cv2.imencode(".tif", values[..., ::-1])[1].tobytes(),
}


@pytest.mark.parametrize("form", DEEP_FILES)
@pytest.mark.parametrize("bits", [1, 5, 8, 9, 10, 12, 14, 15, 16])
def test_values_that_fill_16_bits_in_part_are_refused_with_what_scales_them(form, bits, tmp_path):
    values = np.random.default_rng(bits).integers(0, 2**bits, (6, 7, 3)).astype(np.uint16)
    values[2, 3] = 2**bits - 1
    path = tmp_path / "a"
    path.write_bytes(DEEP_FILES[form](values))
    if bits > 14:
        pixels_HW3 = RgbImage(path).pixels_HW3
        assert np.abs(pixels_HW3[..., 0].astype(int) - values[..., 0] / 257).max() <= 1
        return
    factor = 2 ** max(bits - 8, 0)
    says = rf"16 bits in .*a, got such that need only {bits} of them, .*; divide them by {factor},"
    if form == "grey and alpha PNG" and bits <= 8:  # whose low bytes Pillow cannot be made to take
        says = "save it as an 8-bit RGB image"
    with Image.open(path) as opened:
        for source, name in ((path, "a"), (opened, "the PIL image")):
            with pytest.raises(ImageError, match=says.replace(".*a,", f".*{name},")):
                RgbImage(source).pixels_HW3  # noqa: B018


@pytest.mark.parametrize("form", [form for form in DEEP_FILES if "alpha" not in form])
def test_black_images_of_16_bits_are_black(form, tmp_path):
    (tmp_path / "a").write_bytes(DEEP_FILES[form](np.zeros((6, 7, 3), dtype=np.uint16)))
    assert not RgbImage(tmp_path / "a").pixels_HW3.any()


def test_orientation_tag_turns_an_image_unless_it_is_left_off(colours, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    colours.save(tmp_path / "a.jpg", exif=exif)
    turned = RgbImage(tmp_path / "a.jpg")
    stored = RgbImage(tmp_path / "a.jpg", apply_orientation=False)
    assert turned.hw == turned.pixels_HW3.shape[:2] == (32, 24)
    assert stored.hw == stored.pixels_HW3.shape[:2] == (24, 32)
    np.testing.assert_array_equal(turned.pixels_HW3, np.rot90(stored.pixels_HW3, -1))
    assert turned.sha256 != stored.sha256


def test_sha256_is_that_of_the_file_or_of_pixels_and_shape(colours, tmp_path):
    for name in ("a.png", "b.png"):
        colours.save(tmp_path / name)
    assert RgbImage(tmp_path / "a.png").sha256 == RgbImage(tmp_path / "b.png").sha256
    pixels_HW3 = np.array(colours)
    assert RgbImage(colours).sha256 == RgbImage(pixels_HW3).sha256
    assert RgbImage(pixels_HW3).sha256 != RgbImage(pixels_HW3.reshape(32, 24, 3)).sha256


def test_images_that_differ_in_palette_alone_are_not_taken_for_one(colours):
    image = colours.quantize(16)
    other = image.copy()
    other.putpalette([255 - value for value in image.getpalette()])
    assert RgbImage(image).sha256 != RgbImage(other).sha256


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "tif", "bmp", "webp"])
def test_truncated_image_is_refused_wherever_it_is_cut(colours, extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    colours.save(path)
    content = path.read_bytes()
    for share in (0.02, 0.1, 0.3, 0.5, 0.7):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ImageError, match=rf"Expected a(n|( whole)) image in {path}, got"):
            RgbImage(path).pixels_HW3  # noqa: B018


def test_truncated_pil_image_is_refused(colours):
    buffer = io.BytesIO()
    colours.save(buffer, "PNG")
    lazy = Image.open(io.BytesIO(buffer.getvalue()[:-40]))
    with pytest.raises(ImageError, match="Expected a whole image in the PIL image, got one that"):
        RgbImage(lazy)


@pytest.mark.parametrize("values", [0.5, -1, 70_000])
def test_values_that_are_no_colours_are_refused(values, tmp_path):
    mode, message = ("F", "integer pixels") if values == 0.5 else ("I", "8 or 16 bits a channel")
    Image.new(mode, (8, 8), values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=rf"Expected {message} in .*a\.tif, got .*; convert it"):
        RgbImage(tmp_path / "a.tif").pixels_HW3  # noqa: B018


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.png", r"Expected an image at .*gone\.png, got no such file; check the path"),
        (".", r"Expected an image at '\.', got Is a directory; check the path"),
        ("a\0b", "got embedded null byte; check the path"),
        (None, "Expected an image as a path, a PIL image .* got NoneType; convert"),
        ([[0, 0, 0]], "got list; convert"),
        (np.zeros((4, 4)), r"shape \(H, W, 3\) and dtype uint8, got \(4, 4\) float64; convert"),
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


@pytest.mark.parametrize("size", [(60_000, 60_000), (8_000, 7_000)])
def test_too_many_pixels_are_refused_without_being_decoded(size, tmp_path):
    (tmp_path / "a.png").write_bytes(png_that_claims(*size))
    with pytest.raises(ImageError, match=r"at most 50,000,000 pixels in .*; shrink it first"):
        RgbImage(tmp_path / "a.png")


def test_longest_shape_that_is_taken_still_has_rows_in_the_input_of_sam():
    assert 256 / MAX_ASPECT_RATIO > 1
    RgbImage(np.zeros((1, MAX_ASPECT_RATIO, 3), np.uint8))


PORTRAIT = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 4, 3), dtype=np.uint8))

PIXELS = {
    Image.Resampling.BICUBIC: [
        [133, 117, 99, 100, 116],
        [115, 144, 135, 98, 79],
        [169, 163, 160, 138, 95],
    ],
    Image.Resampling.BILINEAR: [
        [139, 119, 107, 105, 108],
        [120, 140, 127, 100, 86],
        [160, 162, 158, 137, 96],
    ],
}
"""Red of ``PORTRAIT`` at 5 x 3 pixels, as Pillow 12.1 gives it in one call; 13.0 begins with the
other axis."""


@pytest.mark.parametrize("kind", PIXELS)
def test_resized_pixels_are_the_same_under_every_pillow(kind):
    found_HW3 = np.array(resized(PORTRAIT, (5, 3), kind))
    assert found_HW3[..., 0].tolist() == PIXELS[kind]


@pytest.mark.parametrize("size", [(5, 9), (4, 3), (4, 9), (1, 1)])
def test_one_axis_resizes_as_in_one_call(size):
    """Where there is no order to choose."""
    found = resized(PORTRAIT, size, Image.Resampling.BICUBIC)
    if size != (1, 1):
        expected = PORTRAIT.resize(size, Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(np.array(found), np.array(expected))
    assert found.size == size


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_format_of_phones_is_named_with_what_reads_it(brand, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\x00\x00\x00\x18ftyp" + brand + bytes(100))
    with pytest.raises(ImageError, match=r"got HEIC, .*; run `pip install pillow-heif`, or save"):
        RgbImage(path)
