"""Image files that are missing, corrupt, or of another size than annotated."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from hybridgl.errors import SettingError
from refer.config import SplitConfig, load_split
from refer.dataset import ImageErrors, ImageInfo, ReferSplit
from refer.image_errors import describe_image_errors, find_image_errors
from tests.refer_factories import with_orientation

HW = (24, 32)


@pytest.fixture
def split_of(tmp_path):
    def build(*names, hw=HW):
        images = {7 * i: ImageInfo(7 * i, name, *hw) for i, name in enumerate(names, start=1)}
        return ReferSplit("birds", "all", "-", (), images, {}, (tmp_path,), {})

    return build


def image(extension, hw=HW):
    rng = np.random.default_rng(0)
    pixels_HW3 = rng.integers(0, 256, (*hw, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, Image.registered_extensions()[extension])
    return buffer.getvalue()


def png_that_claims(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_whole_images_have_no_errors(tmp_path, split_of):
    names = [f"a{extension}" for extension in (".jpg", ".png", ".gif", ".tif", ".bmp", ".webp")]
    for name in names:
        (tmp_path / name).write_bytes(image(name[1:]))
    assert find_image_errors(split_of(*names)) == ImageErrors()


def test_errors_are_in_dataset_order(tmp_path, split_of):
    (tmp_path / "wide.jpg").write_bytes(image(".jpg", (24, 40)))
    (tmp_path / "turned.jpg").write_bytes(image(".jpg", (32, 24)))
    (tmp_path / "text.jpg").write_text("not found")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "good.jpg").write_bytes(image(".jpg"))
    split = split_of(
        "turned.jpg", "none.jpg", "text.jpg", "good.jpg", "wide.jpg", "folder.jpg", "empty.jpg"
    )
    assert find_image_errors(split) == ImageErrors(
        missing=(14, 42), corrupt=(21, 49), wrong_size={7: (32, 24), 35: (24, 40)}
    )


@pytest.mark.parametrize("extension", [".jpg", ".png", ".gif", ".tif", ".bmp", ".webp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_a_file_cut_short_is_corrupt(tmp_path, split_of, extension, share):
    content = image(extension)
    (tmp_path / f"a{extension}").write_bytes(content[: int(share * len(content))])
    assert find_image_errors(split_of(f"a{extension}")) == ImageErrors(corrupt=(7,))


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_bytes_after_a_whole_image_do_no_harm(tmp_path, split_of, extension):
    (tmp_path / "a").write_bytes(image(extension) + b"\0" * 50)
    assert find_image_errors(split_of("a")) == ImageErrors()


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_whole_files_are_not_decoded(tmp_path, split_of, extension, monkeypatch):
    def refuse(*_):
        raise AssertionError

    (tmp_path / "a").write_bytes(image(extension))
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    assert find_image_errors(split_of("a")) == ImageErrors()
    with (tmp_path / "a").open("ab") as file:
        file.write(b"\0")
    assert find_image_errors(split_of("a")) == ImageErrors(corrupt=(7,))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (10_000, ImageErrors(wrong_size={7: (10_000, 10_000)})),
        (60_000, ImageErrors(corrupt=(7,))),
    ],
)
def test_gigapixels_are_not_decoded(tmp_path, split_of, side, expected):
    (tmp_path / "a.png").write_bytes(png_that_claims(side, side))
    assert find_image_errors(split_of("a.png")) == expected


def test_the_orientation_of_a_camera_does_not_turn_the_size(tmp_path, split_of):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", HW[::-1]).save(tmp_path / "a.jpg", exif=exif)
    assert find_image_errors(split_of("a.jpg")) == ImageErrors()


def test_a_file_that_may_not_be_read_is_corrupt(tmp_path, split_of, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(image(".jpg"))

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.open", refuse)
    assert find_image_errors(split_of("a.jpg")) == ImageErrors(corrupt=(7,))


def test_no_errors_need_no_words(split_of):
    assert describe_image_errors(split_of("a.jpg"), ImageErrors()) == []


def test_each_kind_of_error_gives_a_line_with_count_and_names(split_of, tmp_path):
    names = [f"{letter}.jpg" for letter in "abcdefghij"]
    (tmp_path / "h.jpg").write_bytes(b"no image")
    image_errors = ImageErrors(
        missing=(7, 14, 21, 28, 35, 42, 49), corrupt=(56,), wrong_size={63: (2, 1), 70: (9, 8)}
    )
    assert describe_image_errors(split_of(*names), image_errors) == [
        "7 of 10 images of birds all are missing: a.jpg, b.jpg, c.jpg, d.jpg, e.jpg and 2 more. "
        f"Give --image_root DIR, as they are not in {tmp_path}.",
        "1 of 10 images of birds all are corrupt: h.jpg. The first: Expected an image in "
        f"{tmp_path / 'h.jpg'}, got 8 bytes of something else; give a JPEG, PNG or another format "
        "that Pillow reads.",
        "2 of 10 images of birds all are of another size than annotated: "
        "i.jpg (1 x 2, annotated 32 x 24), j.jpg (8 x 9, annotated 32 x 24). Fetch them again.",
    ]


def test_missing_images_of_published_datasets_are_said_to_be_published(split_of):
    split = dataclasses.replace(split_of("a.jpg"), dataset="refcoco")
    (line,) = describe_image_errors(split, ImageErrors(missing=(7,)))
    assert line.endswith("missing: a.jpg. See refer/README.md for where they come from.")


def test_formats_that_a_phone_writes_are_read_with_the_extra(tmp_path, split_of, monkeypatch):
    """Pillow is told of it before it reads a header."""
    registered = []
    monkeypatch.setattr("refer.image_errors.register_heic", lambda: registered.append("heic"))
    find_image_errors(split_of("a.heic"))
    assert registered == ["heic"]


# Orientation.


def write_photograph(folder, name, orientation, hw=HW):
    """An image that is upright after its tag; returns its upright pixels."""
    upright = np.zeros((*hw, 3), dtype=np.uint8)
    upright[: hw[0] // 2, : hw[1] // 2] = 255
    held = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    stored = Image.fromarray(upright) if held is None else Image.fromarray(upright).transpose(held)
    buffer = io.BytesIO()
    stored.save(buffer, "PNG" if name.endswith("png") else "JPEG", quality=100)
    content = buffer.getvalue()
    if orientation > 1:
        content = with_orientation(content, orientation)
    (folder / name).write_bytes(content)
    return upright


def pixels_of(split, image_id, **found):
    opened = dataclasses.replace(split, image_errors=find_image_errors(split, **found))
    return opened.open_image(image_id).pixels_HW3.astype(int)


def test_quarter_turns_are_made_where_the_annotated_size_is_that_of_the_turned_image(
    tmp_path, split_of
):
    upright = write_photograph(tmp_path, "phone.jpg", 6)
    split = split_of("phone.jpg")
    errors = find_image_errors(split, apply_exif=False)
    assert errors == ImageErrors(turned=(7,))
    (line,) = describe_image_errors(split, errors)
    assert "1 of 1 images of birds all are turned as their EXIF tags say: phone.jpg." in line
    assert np.abs(pixels_of(split, 7, apply_exif=False) - upright).mean() < 5
    # Annotated as stored: nothing is turned, and nothing to be said.
    assert find_image_errors(split_of("phone.jpg", hw=HW[::-1]), apply_exif=False) == ImageErrors()


@pytest.mark.parametrize(("orientation", "hw"), [(3, HW), (6, (24, 24))])
def test_turns_that_size_does_not_tell_are_named_and_made_on_demand(
    tmp_path, split_of, orientation, hw
):
    upright = write_photograph(tmp_path, "phone.jpg", orientation, hw)
    write_photograph(tmp_path, "plain.jpg", 1, hw)
    split = split_of("phone.jpg", "plain.jpg", hw=hw)
    errors = find_image_errors(split, apply_exif=False)
    assert errors == ImageErrors(tagged=(7,))
    (line,) = describe_image_errors(split, errors)
    assert "that their size does not settle: phone.jpg. They are taken as stored" in line
    assert "--apply_exif" in line
    assert np.abs(pixels_of(split, 7, apply_exif=False) - upright).mean() > 50
    assert find_image_errors(split, apply_exif=True) == ImageErrors(turned=(7,))
    assert np.abs(pixels_of(split, 7, apply_exif=True) - upright).mean() < 5


def test_tags_of_published_datasets_are_not_looked_at(tmp_path, split_of):
    write_photograph(tmp_path, "half.jpg", 3)
    write_photograph(tmp_path, "quarter.jpg", 6)
    found = find_image_errors(split_of("half.jpg", "quarter.jpg"))
    assert found == ImageErrors(wrong_size={14: HW[::-1]})


def test_damaged_tags_are_none(tmp_path, split_of):
    write_photograph(tmp_path, "phone.jpg", 3)
    content = (tmp_path / "phone.jpg").read_bytes()
    start = content.index(b"Exif")
    damaged = content[: start + 6] + b"\xff" * 8 + content[start + 14 :]
    (tmp_path / "phone.jpg").write_bytes(damaged)
    assert find_image_errors(split_of("phone.jpg"), apply_exif=False) == ImageErrors()


def test_published_datasets_refuse_to_be_turned():
    with pytest.raises(SettingError, match=r"--apply_exif with a custom dataset, got it with refc"):
        load_split(SplitConfig(dataset="refcoco", apply_exif=True))
