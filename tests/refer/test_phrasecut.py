"""The PhraseCut reader on a small folder in its authors' layout."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from refer import splits
from refer.mask_errors import without_broken_masks
from refer.phrasecut import COCO_CATEGORIES, load_phrasecut
from refer.segmentation import MaskRule
from tests.refer_factories import (
    HW,
    LEFT_POLYGON,
    RIGHT_POLYGONS,
    mini_phrasecut,
    points,
    write_images,
)

FIRST = "2405700__0"


def load(root, split="val", *, strict=False):
    return load_phrasecut(root, split, check_counts=False, strict=strict)


def write_and_load(root, mini, *, strict=False):
    mini.write(root / "phrasecut", images=None)
    return load(root, strict=strict)


def in_order(tasks):
    """Tasks by image id, those of an image in their order."""
    return sorted(tasks, key=lambda task: task["image_id"])


def warnings_of(split):
    """Return the warnings besides counts: what is written here is never the whole of PhraseCut."""
    return [line for line in split.warnings if "expected" not in line]


@pytest.fixture(scope="module")
def mini_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    mini_phrasecut().write(root / "phrasecut")
    return root


def slow_gt_mask(task):
    """Every polygon of every instance on an image of its own, and their sum above zero."""
    total_HW = np.zeros(HW)
    for instance in task["Polygons"]:
        for polygon in instance:
            canvas = Image.new("L", (HW[1], HW[0]), 0)
            ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in polygon], 1, 1)
            total_HW += np.array(canvas)
    return total_HW > 0


def test_a_task_is_a_ref_with_one_sentence(mini_root):
    split = load(mini_root)
    assert (split.dataset, split.split, split.split_by) == ("phrasecut", "val", "-")
    tasks = in_order(mini_phrasecut().tasks)
    assert [ref.ref_id for ref in split.refs] == [task["task_id"] for task in tasks]
    assert [ref.image_id for ref in split.refs] == [task["image_id"] for task in tasks]
    for ref, task in zip(split.refs, tasks, strict=True):
        (sentence,) = ref.sentences
        assert (sentence.sent_id, sentence.raw) == (0, task["phrase"])
    assert split.mask_rule is MaskRule.PHRASECUT
    assert split.num_sentences == 9
    assert warnings_of(split) == []


def test_phrases_of_coco_categories_are_seen(mini_root):
    kinds = [ref.sentences[0].kind for ref in load(mini_root).refs]
    assert kinds == ["seen", "unseen", "unseen"] * 3


def test_the_categories_are_the_eighty_of_coco():
    assert len(COCO_CATEGORIES) == 80
    assert {"person", "hair drier", "tv", "potted plant", "toothbrush"} <= COCO_CATEGORIES
    assert not {"man", "people", "", "televison", "street sign", "Person"} & COCO_CATEGORIES


def test_images_come_in_the_order_of_their_ids(tmp_path):
    """As the released program goes, whatever the order of the tasks; it decides quirk Q5."""
    mini = mini_phrasecut()
    mini.tasks.reverse()
    split = write_and_load(tmp_path, mini)
    assert list(split.images) == list(split.refs_by_image()) == [2405700, 2405711, 2405722]
    assert [ref.ref_id for ref in split.refs] == [one["task_id"] for one in in_order(mini.tasks)]
    assert [ref.ref_id for ref in split.refs[:3]] == ["2405700__2", "2405700__1", "2405700__0"]


def test_images_are_found_with_their_sizes(mini_root):
    split = load(mini_root)
    assert {(image.height, image.width) for image in split.images.values()} == {HW}
    assert split.image_path(2405711) == mini_root / "phrasecut/images/2405711.jpg"
    assert split.image_path(2405711).is_file()


@pytest.mark.parametrize("dropped", [True, False])
def test_the_mask_is_the_union_of_all_instances(mini_root, dropped):
    split, tasks = load(mini_root), in_order(mini_phrasecut().tasks)
    for ref, task in zip(split.refs, tasks, strict=True):
        gt_mask_HW = split.gt_mask(ref, overlapping_polygons_dropped=dropped)
        np.testing.assert_array_equal(gt_mask_HW, slow_gt_mask(task))
        assert len(ref.ann_ids) == len(task["Polygons"])
    # The box is 25 x 33 pixels with its border.
    assert split.gt_mask(split.refs[0], overlapping_polygons_dropped=True).sum() == 25 * 33


def test_repeated_instances_are_proposals_once(mini_root):
    split = load(mini_root)
    image_id = split.refs[0].image_id
    assert len([a for a in split.annotations.values() if a.image_id == image_id]) == 6
    instances = split.instances(image_id)
    assert instances == ("2405700__0.0", "2405700__1.0", "2405700__1.1")
    expected = [[points(LEFT_POLYGON)], *([points(polygon)] for polygon in RIGHT_POLYGONS)]
    assert [split.annotations[i].segmentation for i in instances] == expected


@pytest.mark.parametrize("place", ["phrasecut", "phrasecut/VGPhraseCut_v0", "VGPhraseCut_v0", "."])
def test_the_folder_is_found(tmp_path, place):
    mini_phrasecut().write(tmp_path / place)
    split = load(tmp_path)
    assert all(split.image_path(image_id).is_file() for image_id in split.images)


def test_the_first_folder_with_the_split_is_taken(tmp_path):
    other, mini = mini_phrasecut(), mini_phrasecut()
    other.write(tmp_path / "phrasecut", "test")
    mini.tasks[0]["phrase"] = "the inner one"
    mini.write(tmp_path / "phrasecut/VGPhraseCut_v0")
    other.write(tmp_path)
    assert load(tmp_path).refs[0].sentences[0].raw == "the inner one"
    assert load(tmp_path, "test").refs[0].sentences[0].raw == "red box"


@pytest.mark.parametrize(
    "place",
    [
        "phrasecut/images",
        "phrasecut/VG_100K",
        "phrasecut/VG_100K_2",
        "images/VG_100K",
        "images/VG_100K_2",
    ],
)
def test_images_are_found_in_the_folders_of_visual_genome(tmp_path, place):
    mini_phrasecut().write(tmp_path / "phrasecut", images=None)
    write_images(tmp_path / "images/VG_100K", ["2405700.jpg"])
    write_images(tmp_path / place, ["2405722.jpg"])
    split = load(tmp_path)
    assert split.image_path(2405722) == tmp_path / place / "2405722.jpg"
    assert split.image_path(2405700) == tmp_path / "images/VG_100K/2405700.jpg"
    assert split.image_path(2405711) == tmp_path / "phrasecut/images/2405711.jpg"
    assert not split.image_path(2405711).exists()


def test_sha256_are_those_of_the_files_read(mini_root):
    assert load(mini_root).sha256_by_file == {
        name: hashlib.sha256((mini_root / "phrasecut" / name).read_bytes()).hexdigest()
        for name in ("refer_val.json", "image_data_split.json")
    }


# Counts.


def test_a_wrong_number_of_phrases_names_both_numbers(mini_root):
    says = r"expected 20316 refs, got 9; expected 2971 images, got 3 in \S*refer_val.json"
    with pytest.raises(ValueError, match=says):
        load_phrasecut(mini_root, "val")
    (warning,) = load(mini_root).warnings
    assert warning.startswith("Not the whole of phrasecut val (-): expected 20316 refs, got 9;")


def test_right_counts_pass_without_a_word(mini_root, monkeypatch):
    counts = splits.ExpectedCounts(9, 3)
    monkeypatch.setattr(splits, "expected_counts", lambda *_: counts)
    assert load_phrasecut(mini_root, "val").warnings == ()


# What is missing or left out.


def test_a_missing_file_names_the_expected_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got none; see refer/README\.md") as caught:
        load(tmp_path, "miniv")
    for expected in ("refer_miniv.json", "image_data_split.json", "VGPhraseCut_v0", "images/"):
        assert expected in str(caught.value)
    mini_phrasecut().write(tmp_path / "phrasecut", "miniv", images=None)
    (tmp_path / "phrasecut/image_data_split.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"image_data_split.json beside refer_miniv"):
        load(tmp_path, "miniv")


def test_another_split_is_refused(mini_root):
    with pytest.raises(ValueError, match="train, val, test, miniv, got 'testA'"):
        load(mini_root, "testA")


@pytest.mark.parametrize("polygons", [[], [[]], [[[]]], [[[[3, 4]]]], [[], [[[3, 4]], []]]])
def test_a_task_without_any_polygon_is_named_not_dropped(tmp_path, polygons):
    mini = mini_phrasecut()
    mini.tasks[0]["Polygons"] = polygons
    split = write_and_load(tmp_path, mini)
    assert split.refs_without_mask == (FIRST,)
    assert f"1 of 9 refs of phrasecut val lack a mask: {FIRST}." in split.warnings
    assert not split.gt_mask(split.refs[0], overlapping_polygons_dropped=True).any()
    assert len(split.refs) == 9


def test_polygons_of_one_point_are_left_out_and_counted(tmp_path):
    mini = mini_phrasecut()
    mini.tasks[0]["Polygons"][0] += [[[3, 4]], []]
    mini.tasks[4]["Polygons"][0].insert(0, [[3, 4]])
    split = write_and_load(tmp_path, mini)
    (warning,) = warnings_of(split)
    assert warning.startswith("3 polygons in ")
    assert warning.endswith(f"2 tasks: {FIRST}, 2405711__1.")
    for place in (0, 4):
        np.testing.assert_array_equal(
            split.gt_mask(split.refs[place], overlapping_polygons_dropped=True),
            slow_gt_mask(mini_phrasecut().tasks[place]),
        )


def test_a_polygon_of_two_points_is_a_line(tmp_path):
    mini = mini_phrasecut()
    mini.tasks[0]["Polygons"] = [[[[3.9, 4], [3, 9]]]]
    split = write_and_load(tmp_path, mini)
    gt_mask_HW = split.gt_mask(split.refs[0], overlapping_polygons_dropped=True)
    assert gt_mask_HW.sum() == gt_mask_HW[4:10, 3].sum() == 6
    assert warnings_of(split) == []


# What is damaged.


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("task_id", None, "task_id as str, got None"),
        ("task_id", 5, "task_id as str, got 5"),
        ("image_id", "2405722", "image_id as int, got '2405722'"),
        ("image_id", True, "image_id as int, got True"),
        ("phrase", None, "phrase as str, got None"),
        ("phrase", "", "a phrase in words, got ''"),
        ("phrase", " \t", r"a phrase in words, got ' \\t'"),
        ("phrase_structure", None, "phrase_structure as dict, got None"),
        ("phrase_structure", {"name": 3}, "name as str, got 3"),
        ("phrase_structure", {}, "name as str, got None"),
        ("Polygons", None, "Polygons as list, got None"),
        ("Polygons", [[], 5], "its polygons as a list, got 5"),
    ],
)
def test_a_malformed_task_is_refused_strictly_by_its_place(tmp_path, key, value, says):
    mini = mini_phrasecut()
    mini.tasks[4][key] = value
    with pytest.raises(ValueError, match=says) as caught:
        write_and_load(tmp_path, mini, strict=True)
    assert f"ntry 4 of the tasks in {tmp_path}/phrasecut/refer_val.json: " in str(caught.value)


@pytest.mark.parametrize(
    ("polygons", "says"),
    [
        ([[5]], r"Expected a polygon as a list of points \[x, y\], got 5"),
        ([[[5, 6]]], r"list of points \[x, y\], got 5"),
        ([[[[1, 2], [3, 4]], [[1, 2], [3]]]], r"Part 1 of 2 .*got \[3\]"),
        ([[[[1, 2], [3, "4"]]]], "got '4' among them"),
        ([[[[1, 2], [3, float("nan")]]]], "height 64 and width 96, got .* nan"),
        ([[[[1, 2], [3, float("inf")]]]], "height 64 and width 96, got .* inf"),
        ([[[[1, 2], [193, 4]]]], "height 64 and width 96, got the coordinate 193"),
        ([[[[1, 2], [96, 129]]]], "height 64 and width 96, got the coordinate 129"),
        ([[[[1, 2], [96, -65]]]], "height 64 and width 96, got the coordinate -65"),
    ],
)
def test_a_broken_polygon_is_named_and_its_object_has_no_mask(tmp_path, polygons, says):
    mini = mini_phrasecut()
    mini.tasks[4]["Polygons"] += polygons
    split = write_and_load(tmp_path, mini, strict=True)
    broken = "2405711__1.2"
    checked = without_broken_masks(split, split.annotations)
    assert (
        f"1 annotations of phrasecut val have a broken mask, and count as without one: {broken}"
        in (checked.warnings[-1])
    )
    assert checked.refs_without_mask == ("2405711__1",)
    (ref,) = [ref for ref in checked.refs if ref.ref_id == "2405711__1"]
    gt_mask_HW = checked.gt_mask(ref, overlapping_polygons_dropped=True)
    np.testing.assert_array_equal(gt_mask_HW, slow_gt_mask(mini_phrasecut().tasks[4]))
    with pytest.raises(ValueError, match=f"^Annotation {broken} of image 2405711.jpg: .*{says}"):
        without_broken_masks(split, split.annotations, strict=True)


def test_broken_tasks_and_phrases_are_left_out_counted_and_named(tmp_path):
    mini = mini_phrasecut()
    mini.tasks[0]["task_id"] = 5
    mini.tasks[1]["phrase"] = " "
    mini.tasks[2]["phrase_structure"] = None
    mini.tasks[4]["Polygons"] = None
    mini.tasks[5]["Polygons"][0] = 7
    for task in mini.tasks:
        task["image_id"] = str(task["image_id"])
    mini.sizes[2] |= {"image_id": 2405711.0, "height": "64"}
    split = write_and_load(tmp_path, mini)
    kinds = {ref.ref_id: [one.kind for one in ref.sentences] for ref in split.refs}
    assert len(kinds) == 8
    assert kinds["2405711__0"] == []
    assert kinds["2405722__0"] == [None]
    assert split.refs_without_mask == ("2405711__1", "2405722__1")
    lines = warnings_of(split)
    for start, place in (
        ("1 broken tasks are left out of ", "entry 0 of the tasks"),
        ("1 broken phrases are left out of ", "entry 1 of the tasks"),
        ("1 phrases are neither seen nor unseen in ", "entry 2 of the tasks"),
        (
            "2 objects without a list of polygons count as without a mask in ",
            "entry 4 of the tasks",
        ),
    ):
        (line,) = [line for line in lines if line.startswith(start)]
        assert f"refer_val.json: {place}" in line
    assert {(image.height, image.width) for image in split.images.values()} == {HW}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("height", 0, r"positive height and width, got \(0, 96\)"),
        ("width", -3, r"got \(64, -3\)"),
        ("width", None, "width as int, got None"),
        ("height", 64.0, "height as int, got 64.0"),
        ("image_id", None, "image_id as int, got None"),
    ],
)
def test_a_malformed_size_is_refused_strictly(tmp_path, key, value, says):
    mini = mini_phrasecut()
    mini.sizes[2][key] = value
    with pytest.raises(ValueError, match=says) as caught:
        write_and_load(tmp_path, mini, strict=True)
    assert f"Entry 2 of the images in {tmp_path}/phrasecut/image_data" in str(caught.value)


def test_a_missing_size_is_that_of_the_file(tmp_path):
    mini = mini_phrasecut()
    mini.sizes[2]["height"] = None
    mini.write(tmp_path / "phrasecut")
    split = load(tmp_path)
    assert (split.images[2405711].height, split.images[2405711].width) == HW
    assert "1 of 3 images of phrasecut val have no annotated size" in warnings_of(split)[-1]


def test_an_image_that_is_not_listed_names_the_task(tmp_path):
    mini = mini_phrasecut()
    del mini.sizes[2]
    says = r"size of image 2405711, of task 2405711__0, in \S*image_data_split.json, got none;"
    with pytest.raises(ValueError, match=says):
        write_and_load(tmp_path, mini)


def test_duplicates_are_named(tmp_path):
    mini = mini_phrasecut()
    mini.tasks[5]["task_id"] = FIRST
    with pytest.raises(ValueError, match=rf"every task_id in \S* to be unique, got {FIRST} more"):
        write_and_load(tmp_path, mini)
    mini = mini_phrasecut()
    mini.sizes.append(mini.sizes[1])
    with pytest.raises(ValueError, match=r"every image_id in \S* to be unique, got 2405722 more"):
        write_and_load(tmp_path, mini)


@pytest.mark.parametrize("name", ["refer_val.json", "image_data_split.json"])
@pytest.mark.parametrize(
    ("content", "says"),
    [("[{", "whole JSON in"), ("{}", "as a list, got {}"), ("[3]", "Expected an object, got 3")],
)
def test_damaged_files_are_named(tmp_path, name, content, says):
    mini_phrasecut().write(tmp_path / "phrasecut", images=None)
    (tmp_path / "phrasecut" / name).write_text(content)
    with pytest.raises(ValueError, match=says) as caught:
        load(tmp_path)
    assert name in str(caught.value)


def test_an_empty_split_is_refused(tmp_path):
    mini = mini_phrasecut()
    mini.tasks.clear()
    with pytest.raises(ValueError, match=r"Expected tasks in \S*refer_val.json, got none"):
        write_and_load(tmp_path, mini)


def test_other_keys_are_ignored(tmp_path):
    mini = mini_phrasecut()
    for task in mini.tasks:
        del task["ann_ids"], task["instance_boxes"]
    split = write_and_load(tmp_path, mini)
    mini_phrasecut().write(tmp_path / "phrasecut", images=None)
    assert split.refs == load(tmp_path).refs
