"""The library against what the published programs compute, and the checker against damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgl import gem, views
from hybridgl.config import ReferenceQuirks
from hybridgl.errors import DataError
from scripts.check_golden import Comparison, compare_folder, main
from tests.clip_oracle import SlowVision
from tests.factories_clip import clip_encoder, clip_state, save_npz

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def report():
    return compare_folder(GOLDEN)


@pytest.fixture
def copy(tmp_path):
    """A folder with some of the vectors, to be changed."""

    def copy(*names):
        for name in names:
            shutil.copy(GOLDEN / name, tmp_path / name)
        return tmp_path

    return copy


def change_npz(path, name, change):
    with np.load(path) as arrays:
        changed = {**arrays, name: change(arrays[name])}
    np.savez(path, **changed)


def change_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_every_vector_is_met(report):
    assert [str(row) for row in report.comparisons if not row.passed] == []
    assert report.passed


def test_every_file_is_compared(report):
    files = {path.name for path in GOLDEN.iterdir()}
    inputs = {"README.md", "clip_tiny.npz", "guidance.npz"}
    assert {row.file for row in report.comparisons} == files - inputs
    assert [line.partition(" (")[0] for line in report.not_compared] == [
        "features in global_local.npz of clip_tiny_vit32.npz",
        "features in global_local.npz of clip_tiny_rn.npz",
    ]


def test_each_subject_has_as_many_cases_as_its_file(report):
    totals = {(row.file, row.subject): row.total for row in report.comparisons}
    assert totals["language.json", "noun phrase"] == 300
    assert totals["language.json", "relation"] == 300
    assert totals["guidance.json", "guided"] == 24
    assert totals["text.npz", "tokens"] == 6
    assert totals["text.npz", "features"] == 6 * 64
    assert totals["hybrid_0.npz", "local views"] == 5 * 3 * (1 + 14 * 14)
    assert totals["global_local.npz", "boxes of image 0"] == 5
    assert totals["global_local.npz", "crops of image 0"] == 5 * 3 * 14 * 14


def test_all_agree_exits_with_0_and_an_aligned_table(copy, capsys):
    assert main([str(copy("metrics.json", "language.json"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert {line.index("  ok  ") for line in lines} == {lines[0].index("  ok  ")}
    assert "300 of 300 exact" in lines[0]


@pytest.mark.parametrize(
    ("names", "file", "array", "subject"),
    [
        (["clip_tiny.npz", "text.npz"], "text.npz", "features", "features"),
        (["clip_tiny.npz", "text.npz"], "text.npz", "tokens", "tokens"),
        (["clip_tiny.npz", "hybrid_0.npz"], "hybrid_0.npz", "local_sample", "local views"),
        (["clip_tiny.npz", "hybrid_0.npz"], "hybrid_0.npz", "global_mean", "global views"),
        (["guidance.json", "guidance.npz"], "guidance.npz", "0/logits", "logits"),
        (["global_local.npz"], "global_local.npz", "0|crop_sample", "crops of image 0"),
        (["global_local.npz"], "global_local.npz", "0|boxes_xyxy", "boxes of image 0"),
    ],
)
@pytest.mark.parametrize("error", ["off", "not a number", "cut"])
def test_difference_in_an_array_exits_with_1(copy, capsys, names, file, array, subject, error):
    def change(values):
        if error == "cut":
            return values[:, :-1] if values.shape[1] > 1 else values[:-1]
        changed = values.copy()
        if error == "off" or changed.dtype.kind == "i":
            changed.flat[-1] += 1
        else:
            changed.flat[-1] = np.nan
        return changed

    folder = copy(*names)
    change_npz(folder / file, array, change)
    assert main([str(folder)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if "WRONG" in line]
    assert len(wrong) == 1
    assert subject in wrong[0]


def test_error_just_beyond_the_tolerance_is_wrong():
    assert Comparison("f", "s", 1, error=1e-4).passed
    assert not Comparison("f", "s", 1, error=1.01e-4).passed
    assert not Comparison("f", "s", 1, error=float("nan")).passed
    assert not Comparison("f", "s", 1, error=float("inf")).passed
    assert not Comparison("f", "s", 9, matches=8).passed


@pytest.mark.parametrize(
    "name",
    ["noun_phrase", "head_noun", "other_noun_phrases", "other_nouns", "position", "relation"],
)
def test_difference_in_one_parse_exits_with_1(copy, capsys, name):
    folder = copy("language.json")
    change_json(folder / "language.json", lambda cases: cases[17].update({name: ["changed"]}))
    assert main([str(folder)]) == 1
    assert "299 of 300 exact" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pick_hybrid", "pick_final", "top"])
def test_difference_in_one_prediction_exits_with_1(copy, capsys, name):
    folder = copy("guidance.json", "guidance.npz")
    change_json(folder / "guidance.json", lambda cases: cases[3].update({name: [99]}))
    assert main([str(folder)]) == 1
    assert "23 of 24 exact" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["relation_scores", "coherence", "final"])
def test_difference_in_one_score_exits_with_1(copy, name):
    folder = copy("guidance.json", "guidance.npz")

    def change(cases):
        cases[3][name][0] += 1e-3

    change_json(folder / "guidance.json", change)
    assert main([str(folder)]) == 1


@pytest.mark.parametrize("name", ["oIoU", "mIoU"])
def test_difference_in_a_metric_exits_with_1(copy, name):
    folder = copy("metrics.json")

    def change(values):
        values[name] += 1e-3

    change_json(folder / "metrics.json", change)
    assert main([str(folder)]) == 1


MODES = {
    "crop": "crop",
    "token_masking": "token_masking",
    "attn_masking": "attn_masking",
    "L2G": "L2G",
    "G2L": "G2L",
    "G2L&L2G": "both",
}
PHRASES = ["the cat", "a red chair", "left"]


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    """Vectors of other sizes, counts and names, of a CLIP of 64 pixels: the oracle's features."""
    folder = tmp_path_factory.mktemp("vectors")
    state = clip_state(sharpness=2.0)
    save_npz(folder / "clip_tiny.npz", state)
    encoder, slow = clip_encoder(state), SlowVision(state)
    rng = np.random.default_rng(0)
    image_HW3 = rng.integers(0, 256, (50, 71, 3), dtype=np.uint8)
    masks_NHW = rng.random((2, 50, 71)) < 0.5

    quirks, masks = ReferenceQuirks(), torch.from_numpy(masks_NHW)
    image = torch.from_numpy(image_HW3).permute(2, 0, 1)
    blurred = torch.from_numpy(views.blur_background(image_HW3)).permute(2, 0, 1)
    local = views.local_views(image, masks, 64, quirks)
    global_ = views.global_views(image, blurred, masks, 64, quirks)
    one_by_one = list(zip(local, global_, views.patch_coverage(masks, 4), strict=True))
    np.savez(
        folder / "hybrid_night.npz",
        image=image_HW3,
        masks=np.packbits(masks_NHW.reshape(2, -1), axis=1),
        mask_shape=masks_NHW.shape,
        local_mean=local.mean(dim=(2, 3)),
        global_mean=global_.mean(dim=(2, 3)),
        local_sample=local[:, :, ::16, ::16],
        global_sample=global_[:, :, ::16, ::16],
        **{
            f"feat|{name}|{first}": np.stack(
                [slow.mask_feature(mode, *one, first=first) for one in one_by_one]
            )
            for name, mode in MODES.items()
            for first in (10, 4)
        },
    )

    patches = slow.gem_patches(
        gem.gem_input(Image.fromarray(image_HW3), 128), depth=5, iterations=2
    )
    texts = encoder.encode_texts([f"a photo of a {phrase}." for phrase in PHRASES])
    lows = gem.patch_similarity(patches.float(), texts)
    np.savez(
        folder / "gem_depth5_iter2.npz",
        texts=PHRASES,
        image_8=image_HW3,
        low_8=gem.attention_map(lows, 128, (128, 128))[:, ::14, ::14],
        map_8=gem.attention_map(lows, 128, (50, 71)),
    )
    return folder


def test_folder_of_other_sizes_and_counts_is_compared(other_folder):
    report = compare_folder(other_folder)
    assert report.passed, str(report)
    subjects = [(row.file, row.subject, row.total) for row in report.comparisons]
    assert subjects == [
        ("gem_depth5_iter2.npz", "attention maps of image 8", 3 * (10 * 10 + 50 * 71)),
        ("hybrid_night.npz", "local views", 2 * 3 * (1 + 4 * 4)),
        ("hybrid_night.npz", "global views", 2 * 3 * (1 + 4 * 4)),
        *(
            ("hybrid_night.npz", f"{name} from block {first}", 2 * 64)
            for name in MODES
            for first in (10, 4)
        ),
    ]


@pytest.mark.parametrize(
    ("file", "array"),
    [
        *(("hybrid_night.npz", f"feat|{name}|4") for name in MODES),
        ("gem_depth5_iter2.npz", "low_8"),
        ("gem_depth5_iter2.npz", "map_8"),
    ],
)
def test_difference_in_features_and_maps_is_found(other_folder, tmp_path, file, array):
    for name in ("clip_tiny.npz", file):
        shutil.copy(other_folder / name, tmp_path / name)
    change_npz(tmp_path / file, array, lambda values: values + 2e-4 * (values == values.max()))
    assert [row.passed for row in compare_folder(tmp_path).comparisons].count(False) == 1


@pytest.mark.parametrize(
    ("file", "renamed"),
    [
        ("gem_depth5_iter2.npz", "gem_depth6_iter2.npz"),
        ("gem_depth5_iter2.npz", "gem_depth5_iter1.npz"),
    ],
)
def test_depth_and_iterations_are_read_off_the_name(other_folder, tmp_path, file, renamed):
    shutil.copy(other_folder / "clip_tiny.npz", tmp_path / "clip_tiny.npz")
    shutil.copy(other_folder / file, tmp_path / renamed)
    assert not compare_folder(tmp_path).passed


@pytest.mark.parametrize("name", ["text.npz", "hybrid_0.npz", "gem_depth7_iter1.npz"])
def test_vectors_without_their_weights_are_named_and_left_out(copy, name, capsys):
    folder = copy("metrics.json")
    (folder / name).write_bytes(b"never read")
    assert main([str(folder)]) == 0
    assert f"not compared: {name} (the folder lacks its weights clip_tiny.npz)" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["other_method.npz", "more.json"])
def test_files_without_a_counterpart_are_named_and_left_out(copy, name, capsys):
    folder = copy("metrics.json")
    (folder / name).write_bytes(b"never read")
    assert main([str(folder)]) == 0
    assert f"not compared: {name} (the library has no counterpart)" in capsys.readouterr().out


def one_error_line(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_missing_folder_exits_with_2(tmp_path, capsys):
    assert main([str(tmp_path / "gone")]) == 2
    assert "Expected a folder of golden vectors" in one_error_line(capsys)


def test_folder_with_nothing_to_compare_exits_with_2(tmp_path, capsys):
    (tmp_path / "other_method.npz").write_bytes(b"")
    assert main([str(tmp_path)]) == 2
    assert "got nothing to compare" in one_error_line(capsys)


@pytest.mark.parametrize(
    "name",
    ["language.json", "guidance.json", "guidance.npz", "metrics.json", "text.npz", "hybrid_0.npz"],
)
@pytest.mark.parametrize("size", [0, 0.5])
def test_file_that_is_cut_short_exits_with_2(copy, capsys, name, size):
    pair = ["guidance.json", "guidance.npz"] if name.startswith("guidance") else [name]
    folder = copy(*pair, *(["clip_tiny.npz"] if name in ("text.npz", "hybrid_0.npz") else []))
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(len(whole) * size)])
    assert main([str(folder)]) == 2
    assert "got what cannot be compared" in one_error_line(capsys)


def test_weights_that_are_cut_short_exit_with_2(copy, capsys):
    folder = copy("clip_tiny.npz", "text.npz")
    (folder / "clip_tiny.npz").write_bytes((folder / "clip_tiny.npz").read_bytes()[:5000])
    assert main([str(folder)]) == 2
    assert "Expected CLIP weights" in one_error_line(capsys)


def test_case_without_its_arrays_exits_with_2(copy, capsys):
    folder = copy("guidance.json", "guidance.npz")
    change_json(folder / "guidance.json", lambda cases: cases[0].update(id=12345))
    assert main([str(folder)]) == 2
    assert "12345/" in one_error_line(capsys)


@pytest.mark.parametrize(
    ("name", "content"),
    [("language.json", "{}"), ("metrics.json", "[]"), ("language.json", '[{"words": ["a"]}]')],
)
def test_file_of_another_layout_exits_with_2(tmp_path, capsys, name, content):
    (tmp_path / name).write_text(content)
    assert main([str(tmp_path)]) == 2
    one_error_line(capsys)


def test_empty_lists_are_compared_without_a_case(tmp_path):
    (tmp_path / "language.json").write_text("[]")
    assert compare_folder(tmp_path).passed


def test_missing_folder_raises_from_python():
    with pytest.raises(DataError):
        compare_folder(GOLDEN / "gone")
