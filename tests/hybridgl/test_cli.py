"""The command ``hybridgl`` on an image of the shapes world, with the bundled weights."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hybridgl.arguments import model_from_arguments
from PIL import Image

from hybridgl.cli import main
from hybridgl.config import PROPOSALS_REFCOCO, PROPOSALS_SHAPES
from hybridgl.figures import overlay
from hybridgl.methods.hybridgl import HybridGL


@pytest.fixture
def image(world, tmp_path, monkeypatch) -> Path:
    """An image in the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(world / "images/shapes/shapes_val_000001.png", tmp_path / "scene.png"))


def segment(image, *more, expression="the red thing on the left"):
    return main(["segment", str(image), expression, "--device", "cpu", *more])


@pytest.fixture
def refused(capsys, image):
    def check(*argv, **named):
        before = sorted(image.parent.rglob("*"))
        assert segment(*argv, **named) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        assert sorted(image.parent.rglob("*")) == before
        return line

    return check


def test_segment_writes_overlay_and_mask_and_prints_what_it_found(image, capsys):
    assert segment(image, "--mask", "mask.png") == 0
    result = HybridGL.from_pretrained("tiny", device="cpu").segment(
        image, "the red thing on the left"
    )
    assert result.mask.any()
    with Image.open("mask.png") as mask:
        np.testing.assert_array_equal(np.array(mask), result.mask * np.uint8(255))
    with Image.open("scene-segmented.png") as drawn, Image.open(image) as plain:
        expected_HW3 = overlay(np.array(plain.convert("RGB")), result.mask)
        np.testing.assert_array_equal(np.array(drawn), expected_HW3)
    lines = capsys.readouterr().out.splitlines()
    x, y, w, h = result.box
    assert f"box          x {x}, y {y}, w {w}, h {h}" in lines
    assert "noun phrase  the red thing" in lines
    assert "position     left" in lines
    assert f"proposals    {len(result.scores)}" in lines
    (chosen,) = [line for line in lines if line.strip().startswith("*")]
    assert chosen.endswith(str(result.box))
    best = max(candidate.score for candidate in result.candidates)
    assert f"{best:.3f}" in chosen


def test_output_is_written_where_it_is_told(image, tmp_path):
    target = tmp_path / "elsewhere.PNG"
    assert segment(image, "--output", str(target)) == 0
    assert target.is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere.PNG", "scene.png"]


def test_image_without_proposals_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), (128, 128, 128)).save("grey.png")
    assert segment("grey.png", "--mask", "mask.png") == 0
    assert "box          no mask was found" in capsys.readouterr().out
    with Image.open("mask.png") as mask:
        assert not np.array(mask).any()


def test_input_that_cannot_be_used_is_refused(image, refused, tmp_path):
    assert "found no such file" in refused("gone.png")
    assert "Expected an expression in words" in refused(image, expression=" ")
    assert "ends in .png, got a.jpg" in refused(image, "--output", "a.jpg")
    assert "in a folder that is there" in refused(image, "--mask", "none/a.png")
    assert "got a.png twice" in refused(image, "--output", "a.png", "--mask", "a.png")
    assert "than the image itself" in refused(image, "--output", str(tmp_path / "scene.png"))
    assert "Expected weights at gone.pt" in refused(image, "--clip_weights", "gone.pt")
    assert "'tpu'" in refused(image, "--device", "tpu")


def test_words_that_the_terminal_cannot_show_are_no_reason_to_stop(image, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    assert segment(image, expression="the \N{CAT FACE} on the left") == 0
    stream.flush()
    assert b"\\U0001f431" in stream.buffer.getvalue()


def test_wrong_choice_lists_the_right_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        segment("scene.png", "--weights", "huge")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "tiny" in message
    assert "paper" in message


def test_full_disk_leaves_no_file(image, capsys, monkeypatch, tmp_path):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert segment(image) == 2
    line = capsys.readouterr().err
    assert "Cannot write scene-segmented.png: " in line
    assert "No space left" in line
    assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]


def test_mask_generator_is_set_for_what_the_weights_know(image, monkeypatch):
    """As in ``HybridGL.from_pretrained``."""
    made = []

    def build(arguments):
        made.append(model_from_arguments(arguments))
        raise InterruptedError

    monkeypatch.setattr("hybridgl.arguments.model_from_arguments", build)
    monkeypatch.setattr("hybridgl.weights.registry.WeightSet.missing", lambda *_: [])
    for weights in ("tiny", "paper"):
        assert segment(image, "--weights", weights) == 2
    tiny, paper = (model.config.proposals for model in made)
    assert (tiny, paper) == (PROPOSALS_SHAPES, PROPOSALS_REFCOCO)
