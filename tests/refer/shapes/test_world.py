from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refer.refer import load_refer
from refer.segmentation import gt_mask
from refer.shapes import world
from refer.shapes.scene import sample_scene
from refer.shapes.world import DEFAULT_SIZES, ensure_world, run_lengths, training_scene, write_world

SIZES = {"train": 2, "val": 4, "testA": 2, "testB": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, sizes=SIZES)
    return folder


def sha256_of_files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def instances(root: Path) -> dict[str, list[dict[str, object]]]:
    return json.loads((root / "shapes" / "instances.json").read_text())


def refs(root: Path) -> list[dict[str, object]]:
    return pickle.loads((root / "shapes" / "refs(synthetic).p").read_bytes())


def test_same_seed_same_bytes_whatever_the_process(root, tmp_path):
    arguments = [f"--{split}={size}" for split, size in SIZES.items()]
    subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "refer.shapes.world",
            f"--root={tmp_path}",
            *arguments,
        ],
        check=True,
        cwd=Path(__file__).parents[3],
        env={"PYTHONPATH": "src", "PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert sha256_of_files(tmp_path) == sha256_of_files(root)
    assert len(sha256_of_files(root)) == sum(SIZES.values()) + 3


def test_another_seed_gives_other_images(root, tmp_path):
    write_world(tmp_path, seed=1, sizes={"val": 1})
    name = "images/shapes/shapes_val_000000.png"
    assert sha256_of_files(tmp_path)[name] != sha256_of_files(root)[name]


def test_bigger_world_extends_a_smaller_one(root, tmp_path):
    write_world(tmp_path, sizes={"val": 2, "testB": 1})
    small = sha256_of_files(tmp_path)
    assert {name: sha256 for name, sha256 in small.items() if name.endswith(".png")}.items() <= (
        sha256_of_files(root).items()
    )
    for part in ("images", "annotations"):
        assert all(item in instances(root)[part] for item in instances(tmp_path)[part])
    assert all(ref in refs(root) for ref in refs(tmp_path))


def test_masks_are_the_visible_pixels_of_the_image_s_scene(root):
    info = instances(root)["images"][2]
    assert info["file_name"] == "shapes_val_000000.png"
    scene = sample_scene(np.random.default_rng(np.random.SeedSequence((0, 2, 0))))
    image = np.asarray(Image.open(root / "images" / "shapes" / info["file_name"]))
    np.testing.assert_array_equal(image, scene.image_HW3)
    annotations = [a for a in instances(root)["annotations"] if a["image_id"] == info["id"]]
    assert len(annotations) == len(scene.objects)
    for index, annotation in enumerate(annotations):
        rle = annotation["segmentation"]
        mask_HW = gt_mask(rle, scene.labels_HW.shape, overlapping_polygons_dropped=True)
        np.testing.assert_array_equal(mask_HW, scene.mask_HW(index))
        ys, xs = np.nonzero(mask_HW)
        left, top, width, height = annotation["bbox"]
        assert (left, top) == (xs.min(), ys.min())
        assert (left + width - 1, top + height - 1) == (xs.max(), ys.max())
        assert annotation["area"] == mask_HW.sum()
        assert annotation["category_id"] == next(
            c["id"]
            for c in instances(root)["categories"]
            if c["name"] == scene.objects[index].shape
        )


@pytest.mark.parametrize(
    "rows", [["....", "...."], ["####", "####"], ["#..#", ".##."], [".#", "#."], ["#"], ["."]]
)
def test_run_lengths_decode_to_the_mask(rows):
    mask_HW = np.array([[pixel == "#" for pixel in row] for row in rows])
    rle = run_lengths(mask_HW)
    pixels: list[bool] = []
    for place, count in enumerate(rle["counts"]):
        pixels += [place % 2 == 1] * count
    height, width = rle["size"]
    decoded = [[pixels[x * height + y] for x in range(width)] for y in range(height)]
    np.testing.assert_array_equal(np.array(decoded), mask_HW)


def test_run_lengths_go_down_the_columns_and_start_with_background():
    assert run_lengths(np.array([[True, False, False], [True, True, False]]))["counts"] == [
        *(0, 2, 1, 1, 2)
    ]


def test_splits_have_the_asked_sizes_and_share_no_image(root):
    by_split: dict[str, set[int]] = {}
    for ref in refs(root):
        by_split.setdefault(ref["split"], set()).add(ref["image_id"])
    assert {split: len(ids) for split, ids in by_split.items()} == SIZES
    assert len(set.union(*by_split.values())) == sum(SIZES.values())
    images = [d for name, d in sha256_of_files(root).items() if name.endswith(".png")]
    assert len(set(images)) == sum(SIZES.values())


def test_every_image_has_two_or_three_refs_and_four_or_five_sentences(root):
    for image in instances(root)["images"]:
        found = [ref for ref in refs(root) if ref["image_id"] == image["id"]]
        assert len(found) in (2, 3)
        assert sum(len(ref["sentences"]) for ref in found) in (4, 5)


def test_ids_are_unique_and_agree(root):
    contents = instances(root)
    annotations = {a["id"]: a for a in contents["annotations"]}
    assert len(annotations) == len(contents["annotations"])
    assert len({ref["ref_id"] for ref in refs(root)}) == len(refs(root))
    sentence_ids = [s["sent_id"] for ref in refs(root) for s in ref["sentences"]]
    assert len(set(sentence_ids)) == len(sentence_ids)
    for ref in refs(root):
        assert ref["sent_ids"] == [s["sent_id"] for s in ref["sentences"]]
        assert annotations[ref["ann_id"]]["image_id"] == ref["image_id"]
        assert annotations[ref["ann_id"]]["category_id"] == ref["category_id"]


def test_sentence_is_the_cleaned_raw_text_without_its_full_stop(root):
    for ref in refs(root):
        for sentence in ref["sentences"]:
            assert sentence["sent"].split(" ") == sentence["tokens"]
            assert sentence["raw"].lower().rstrip(" .").split() == sentence["tokens"]


def test_the_reader_of_refer_data_reads_it(root):
    split = load_refer(root, "shapes", "testB")
    assert len(split.images) == SIZES["testB"]
    assert split.num_sentences == sum(
        len(ref["sentences"]) for ref in refs(root) if ref["split"] == "testB"
    )


def test_world_of_the_same_parameters_is_left_alone(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write_world(root, sizes=SIZES)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_damaged_world_is_made_again(tmp_path):
    write_world(tmp_path, sizes={"val": 2})
    whole = sha256_of_files(tmp_path)
    (tmp_path / "images" / "shapes" / "shapes_val_000001.png").write_bytes(b"cut")
    write_world(tmp_path, sizes={"val": 2})
    assert sha256_of_files(tmp_path) == whole


def test_world_of_other_parameters_is_replaced(tmp_path):
    write_world(tmp_path, sizes={"val": 2})
    write_world(tmp_path, sizes={"val": 1})
    assert {path.name for path in tmp_path.rglob("*.png")} == {"shapes_val_000000.png"}


def test_failed_writing_leaves_the_old_world_and_nothing_else(tmp_path, monkeypatch):
    write_world(tmp_path, sizes={"val": 1})
    before = sha256_of_files(tmp_path)

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(world, "_dump_json", fail)
    with pytest.raises(OSError, match="disk full"):
        write_world(tmp_path, sizes={"val": 2})
    assert sha256_of_files(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "shapes"]


def test_ensure_world_takes_any_whole_world_and_makes_a_missing_one(tmp_path, monkeypatch):
    write_world(tmp_path / "own", seed=5, sizes={"val": 1})
    before = sha256_of_files(tmp_path / "own")
    assert ensure_world(tmp_path / "own") == tmp_path / "own" / "shapes"
    assert sha256_of_files(tmp_path / "own") == before
    made: list[object] = []
    monkeypatch.setattr(world, "write_world", lambda *given, **named: made.append((given, named)))
    ensure_world(tmp_path / "none")
    assert made == [((tmp_path / "none",), {"seed": 0, "sizes": DEFAULT_SIZES})]


def test_damaged_world_of_another_seed_is_made_again_with_that_seed(tmp_path, caplog):
    write_world(tmp_path, seed=5, sizes={"val": 1})
    before = sha256_of_files(tmp_path)
    (tmp_path / "images" / "shapes" / "shapes_val_000000.png").write_bytes(b"cut")
    ensure_world(tmp_path)
    assert sha256_of_files(tmp_path) == before
    assert "writing it again, with seed 5" in caplog.text


def test_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="Expected nothing but a shapes world"):
        write_world(tmp_path, sizes={"val": 1})
    assert (tmp_path / "shapes" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": {"test": 1}}, "Expected splits among train, val, testA, testB, got 'test'"),
        ({"sizes": {"val": -1}}, "Expected 0 to 999999 images in val, got -1"),
        ({"sizes": {"val": 1}, "seed": 2**32}, "Expected a seed from 0 to 4294967295"),
        ({"sizes": {"val": 1}, "seed": -1}, "Expected a seed from 0 to 4294967295"),
    ],
)
def test_impossible_parameters_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_world(tmp_path / "new", **arguments)
    assert not list(tmp_path.rglob("*.png"))


def test_command_line_reports_a_bad_value_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        world.main([f"--root={tmp_path}", "--val=-3"])
    assert stop.value.code == 2
    assert "Expected 0 to 999999 images in val, got -3" in capsys.readouterr().err


def test_training_scenes_are_repeatable_and_in_no_split(root):
    np.testing.assert_array_equal(training_scene(0, 1).image_HW3, training_scene(0, 1).image_HW3)
    images = {np.asarray(Image.open(path)).tobytes() for path in root.glob("images/shapes/*.png")}
    for seed in range(3):
        for index in range(5):
            assert training_scene(seed, index).image_HW3.tobytes() not in images
