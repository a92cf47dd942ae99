"""The command ``hybridgl`` on an image of the shapes world, with the bundled weights."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybridgl.cli import main
from hybridgl.config import SAM_SETTINGS, FusionMode
from hybridgl.figures import overlay
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.weights.registry import weight_set
from refer.shapes.world import training_scene


@pytest.fixture
def image(tmp_path, monkeypatch) -> Path:
    """An image in the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(training_scene(1, 3).image_HW3).save("scene.png")
    return tmp_path / "scene.png"


def segment(image, *more, expression="the red thing on the left"):
    tiny = [] if "--weights" in more else ["--weights", "tiny"]
    return main(["segment", str(image), expression, "--device", "cpu", *tiny, *more])


@pytest.fixture
def refused(capsys, image):
    def check(*argv, **named):
        before = sorted(image.parent.rglob("*"))
        assert segment(*argv, **named) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        *warnings, line = printed.err.splitlines()
        assert all("know coloured shapes only" in warning for warning in warnings)
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
    assert f"proposals    {len(result.proposals)}" in lines
    (chosen,) = [line for line in lines if line.strip().startswith("*")]
    assert chosen.endswith(str(result.box))
    best = max(candidate.score for candidate in result.candidates)
    assert f"{best:.3f}" in chosen


def test_photographs_are_the_default_and_one_line_says_how_to_get_what_they_need(
    image, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("HYBRIDGL_WEIGHTS", str(tmp_path / "weights"))
    assert main(["segment", str(image), "the dog"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("run `hybridgl download paper`.")
    for name in ("sam_vit_h_4b8939.pth", "ViT-B-16.pt"):
        assert name in line
    with pytest.raises(SystemExit):
        main(["segment", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: paper; for the dataset shapes tiny)" in text
    assert "(default: corrected)" in text


def test_tiny_weights_say_what_they_know_and_which_words_they_have_never_met(image, capsys):
    assert segment(image, expression="the carburetor left of the red zeppelin") == 0
    printed = capsys.readouterr()
    assert "unmet words  carburetor, zeppelin: CLIP has never seen them" in printed.out.splitlines()
    assert segment(image) == 0
    assert "unmet words" not in capsys.readouterr().out


def test_clip_of_unknown_activation_is_told_once_with_the_flag_that_says_it(image, caplog):
    own = shutil.copy(weight_set("tiny").clip_weights, "own.npz")
    assert segment(image, "--clip_weights", own) == 0
    (line,) = [line for line in caplog.messages if "activation" in line]
    assert "own.npz, which is computed with QuickGELU, OpenAI's; say --clip_activation" in line
    caplog.clear()
    assert segment(image, "--clip_weights", own, "--clip_activation", "quickgelu") == 0
    assert "activation" not in caplog.text


def test_nothing_matches_where_the_similarity_is_too_low(image, capsys):
    assert segment(image, "--mask", "mask.png", "--reject_below", "1000") == 0
    out = capsys.readouterr().out
    assert "box          no match: the best similarity is " in out
    assert not any(line.strip().startswith("*") for line in out.splitlines())
    with Image.open("mask.png") as mask:
        assert not np.array(mask).any()


def test_output_is_written_where_it_is_told(image, tmp_path):
    target = tmp_path / "elsewhere.PNG"
    assert segment(image, "--output", str(target)) == 0
    assert target.is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere.PNG", "scene.png"]


def test_images_are_written_in_other_formats_and_folders_are_made(image, tmp_path):
    for name, kind in (("a.jpg", "JPEG"), ("b.JPEG", "JPEG"), ("sub/folder/c.webp", "WEBP")):
        assert segment(image, "--output", name) == 0
        with Image.open(tmp_path / name) as drawn, Image.open(image) as plain:
            assert drawn.format == kind
            assert drawn.size == plain.size
    assert segment(image, "--mask", "masks/m.png") == 0
    assert (tmp_path / "masks" / "m.png").is_file()


def test_an_interruption_is_one_line_wherever_it_comes(capsys, monkeypatch, image):
    def interrupted(*_):
        raise KeyboardInterrupt

    for place in ("_add_segment_arguments", "_segment"):
        with monkeypatch.context() as patch:
            patch.setattr(f"hybridgl.cli.{place}", interrupted)
            assert segment(image) == 130
        assert capsys.readouterr().err.startswith("interrupted; ")


def test_flags_may_have_dashes_and_values_keep_theirs(image, tmp_path):
    assert segment(image, "--sam-settings", "shapes", "--output=a-b.png") == 0
    assert (tmp_path / "a-b.png").is_file()


def test_version_is_told(capsys):
    for argv in (["--version"],):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith("hybridgl ")


def test_command_is_a_module_too(tmp_path):
    command = [
        sys.executable,
        "-m",
        "hybridgl",
        "segment",
        "gone.png",
        "the cat",
        "--weights",
        "tiny",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: Expected an image at gone.png")


def test_image_without_proposals_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), (128, 128, 128)).save("grey.png")
    assert segment("grey.png", "--mask", "mask.png") == 0
    assert "box          no mask was found" in capsys.readouterr().out
    with Image.open("mask.png") as mask:
        assert not np.array(mask).any()


def test_input_that_cannot_be_used_is_refused(image, refused, tmp_path):
    assert "got no such file; check the path" in refused("gone.png")
    assert "Expected an expression in words" in refused(image, expression=" ")
    assert "in .png or .jpg or .jpeg or .webp for --output, got a.gif" in refused(
        image, "--output", "a.gif"
    )
    assert "ends in .png for --mask, got a.jpg" in refused(image, "--mask", "a.jpg")
    assert "got the file" in refused(image, "--mask", "scene.png/a.png")
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


def test_flags_reach_the_model_and_its_mask_generator(image, monkeypatch):
    """As in ``HybridGL.from_pretrained``: the generator is set for what the weights know."""
    made = []

    def keep(model, *_, **__):
        made.append(model)
        raise InterruptedError

    monkeypatch.setattr(HybridGL, "segment", keep)
    monkeypatch.setattr("hybridgl.weights.registry.WeightSet.missing", lambda *_: "")
    for flags in (
        "--weights tiny --fusion_mode both --alpha 0.25",
        "--weights paper --profile reference",
    ):
        assert segment(image, *flags.split()) == 2
    tiny, paper = (model._sam.config for model in made)
    assert (tiny, paper) == (SAM_SETTINGS["shapes"], SAM_SETTINGS["refcoco"])
    config, usual = (model.config for model in made)
    assert not config.quirks.vertical_priors_disabled
    assert (config.fusion.fusion_mode, config.guidance.alpha) == (FusionMode.BOTH, 0.25)
    assert usual.changed() == {}
