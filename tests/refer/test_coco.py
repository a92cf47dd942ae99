"""Datasets by path: folders in REFER form, and files in COCO form."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from refer.coco import custom_name, load_custom, resolve_split
from refer.dataset import Sentence
from refer.pickles import UnsafePickleError
from refer.refer import load_refer
from refer.segmentation import MaskRule
from tests.refer_factories import HW, custom_coco, mini_refer, write_images


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder in REFER form with the splits train, val, testA and testB."""
    mini_refer().write(tmp_path, with_images=False)
    return (tmp_path / "refcoco").rename(tmp_path / "birds")


@pytest.fixture
def written(tmp_path):
    """Writes content to a file in COCO form."""

    def write(content, name="birds.json") -> Path:
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        return tmp_path / name

    return write


def only_split(folder: Path, split: str) -> None:
    path = folder / "refs(unc).p"
    refs = [ref for ref in pickle.loads(path.read_bytes()) if ref["split"] == split]
    path.write_bytes(pickle.dumps(refs))


# Names.


def test_names_are_those_of_the_folder_or_file(tmp_path, monkeypatch):
    (tmp_path / "birds.v2").mkdir()
    assert custom_name(tmp_path / "birds.v2") == "birds.v2"
    assert custom_name(tmp_path / "birds.v2.json") == "birds.v2"
    monkeypatch.chdir(tmp_path / "birds.v2")
    assert custom_name(Path()) == "birds.v2"


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "phrasecut", "shapes"])
def test_no_custom_dataset_passes_for_a_published_one(tmp_path, name):
    assert custom_name(tmp_path / f"{name}.json") == f"custom-{name}"
    (tmp_path / name).mkdir()
    assert custom_name(tmp_path / name) == f"custom-{name}"


# Folders in REFER form.


def test_a_folder_gives_what_the_reader_of_the_dataset_gives(tmp_path):
    mini_refer().write(tmp_path)
    by_name = load_refer(tmp_path, "refcoco", "testA", check_counts=False)
    by_path = load_custom(tmp_path / "refcoco", "testA", "unc")
    assert by_path.refs == by_name.refs
    assert by_path.images == by_name.images
    assert by_path.annotations == by_name.annotations
    assert by_path.sha256_by_file == by_name.sha256_by_file
    assert (by_path.dataset, by_path.split, by_path.split_by) == ("custom-refcoco", "testA", "unc")
    assert by_path.warnings == ()


def test_nothing_has_to_be_chosen_where_there_is_one(folder):
    only_split(folder, "testB")
    split = load_custom(folder)
    assert (split.dataset, split.split, split.split_by) == ("birds", "testB", "unc")
    assert resolve_split(folder, None, None) == ("testB", "unc")


def test_a_split_has_to_be_chosen_among_several(folder):
    with pytest.raises(ValueError, match=r"one of train, val, testA, testB, got none; .*--split"):
        load_custom(folder)
    assert load_custom(folder, "testA").split == "testA"
    assert resolve_split(folder, "testA", None) == ("testA", "unc")
    with pytest.raises(ValueError, match=r"split 'test' .*got those of testA, testB, train, val"):
        load_custom(folder, "test")


def test_a_refs_file_has_to_be_chosen_among_several(folder):
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    (folder / "refs(mine).json").write_text(json.dumps(refs[:1]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"one of mine, unc, got none; choose with --split_by"):
        load_custom(folder, "train")
    with pytest.raises(ValueError, match="one of mine, unc, got 'umd'"):
        load_custom(folder, "train", "umd")
    assert len(load_custom(folder, "train", "mine").refs) == 1
    assert len(load_custom(folder, "train", "unc").refs) == 6


def test_the_pickle_is_preferred_to_the_json(folder):
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    (folder / "refs(unc).json").write_text(json.dumps(refs[:1]), encoding="utf-8")
    assert len(load_custom(folder, "train").refs) == 6
    (folder / "refs(unc).p").unlink()
    assert len(load_custom(folder, "train").refs) == 1


def test_a_hostile_refs_file_is_refused(folder):
    (folder / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    for split in (None, "train"):
        with pytest.raises(UnsafePickleError, match=r"os\.system"):
            load_custom(folder, split)


def test_what_a_folder_lacks_is_named(folder):
    (folder / "refs(unc).p").unlink()
    with pytest.raises(FileNotFoundError, match=r"\S*birds, got no refs file.*README"):
        load_custom(folder)
    (folder / "refs(unc).json").write_text("[]")
    (folder / "instances.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"got no instances\.json"):
        load_custom(folder)


@pytest.mark.parametrize("value", ["left out", None, "bird", [1, 2, float("nan")]])
def test_keys_that_nothing_reads_may_hold_anything(folder, value):
    instances = json.loads((folder / "instances.json").read_text())
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    sentences = [sentence for ref in refs for sentence in ref["sentences"]]
    before = load_custom(folder, "val")
    for entry in [*instances["annotations"], *refs, *sentences]:
        for key in {"category_id", "bbox", "area", "sent", "tokens"} & entry.keys():
            entry[key] = value
            if value == "left out":
                del entry[key]
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
    after = load_custom(folder, "val")
    assert (after.refs, after.annotations) == (before.refs, before.annotations)
    assert after.gt_mask(after.refs[0], overlapping_polygons_dropped=True).sum() == 768


@pytest.mark.parametrize("place", ["images", "."])
def test_images_of_a_folder(folder, place):
    write_images(folder / place, ["COCO_train2014_000000581857.jpg"])
    split = load_custom(folder, "train")
    path = split.image_path(581857)
    assert path == folder / place / "COCO_train2014_000000581857.jpg"
    assert path.is_file()


# Files in COCO form.


def test_a_coco_file_becomes_refs(written):
    path = written(custom_coco())
    split = load_custom(path)
    assert (split.dataset, split.split, split.split_by) == ("birds", "all", "-")
    assert resolve_split(path, None, None) == ("all", "-")
    first, second = split.refs
    assert (first.ref_id, first.ann_ids, first.image_id) == (10, (10,), 2)
    assert first.sentences == (
        Sentence(0, "the red box"),
        Sentence(1, "box on the left"),
    )
    assert (second.ref_id, second.ann_ids) == ("twelve", ("twelve",))
    assert second.sentences == (Sentence(0, "The blue thing"),)
    assert list(split.images) == [2, 1]
    assert list(split.annotations) == [10, 11, "twelve"]
    assert (split.instances(2), split.instances(1)) == ((10, 11), ("twelve",))
    assert split.mask_rule is MaskRule.COCO
    assert split.warnings == ()
    assert split.sha256_by_file == {"birds.json": hashlib.sha256(path.read_bytes()).hexdigest()}
    gt_mask_HW = split.gt_mask(second, overlapping_polygons_dropped=False)
    assert gt_mask_HW.shape == HW
    np.testing.assert_array_equal(np.flatnonzero(gt_mask_HW.any(axis=0)), np.arange(56, 88))


def test_sentences_may_be_those_of_refer(written):
    content = custom_coco()
    content["annotations"][0]["sentences"] = [
        {"sent_id": 7, "raw": "The BOX", "sent": "the box", "tokens": [], "kind": "shape"},
        {"raw": "red"},
        "a box",
    ]
    assert load_custom(written(content)).refs[0].sentences == (
        Sentence(7, "The BOX", "shape"),
        Sentence(1, "red"),
        Sentence(2, "a box"),
    )


def test_expressions_are_sentences_by_another_name(written):
    content = custom_coco()
    content["annotations"][0]["expressions"] = content["annotations"][0].pop("sentences")
    assert load_custom(written(content)).refs == load_custom(written(custom_coco())).refs


def test_run_lengths_and_crowds_are_read(written):
    content = custom_coco()
    runs = {"size": list(HW), "counts": [64 * 95, 64]}
    content["annotations"][1] |= {"segmentation": runs, "iscrowd": 1}
    content["annotations"][2] |= {"segmentation": runs, "iscrowd": 1}
    split = load_custom(written(content))
    assert (split.instances(2), split.instances(1)) == ((10,), ("twelve",))
    assert split.gt_mask(split.refs[1], overlapping_polygons_dropped=True)[:, 95].all()


def test_splits_are_those_of_annotations_before_those_of_images(written):
    content = custom_coco()
    content["images"][0]["split"] = "test"
    content["images"][1]["split"] = "val"
    path = written(content)
    with pytest.raises(ValueError, match=r"one of val, test, got none; choose with --split"):
        load_custom(path)
    assert [ref.ref_id for ref in load_custom(path, "test").refs] == ["twelve"]
    val = load_custom(path, "val")
    assert [ref.ref_id for ref in val.refs] == [10]
    assert (list(val.images), list(val.annotations)) == ([2], [10, 11])
    content["annotations"][2]["split"] = "val"
    path = written(content)
    assert resolve_split(path, None, None) == ("val", "-")
    assert [ref.ref_id for ref in load_custom(path).refs] == [10, "twelve"]


def test_a_split_that_is_not_there_is_answered_with_those_that_are(written):
    with pytest.raises(ValueError, match="one of all, got 'val'"):
        load_custom(written(custom_coco()), "val")


def test_a_ref_without_a_split_among_others_with_one_is_named(written):
    content = custom_coco()
    content["images"][0]["split"] = "test"
    with pytest.raises(ValueError, match=r"every annotation .*got none of annotation 10"):
        load_custom(written(content), "test")


def test_splits_of_annotations_that_nobody_refers_to_do_not_count(written):
    content = custom_coco()
    content["annotations"][1]["split"] = "train"
    assert load_custom(written(content)).split == "all"


def test_a_file_has_no_split_by(written):
    with pytest.raises(ValueError, match=r"no split_by for the file \S*birds.json, got 'unc'"):
        load_custom(written(custom_coco()), "all", "unc")
    assert load_custom(written(custom_coco()), "all", "-").split == "all"


@pytest.mark.parametrize("place", ["images", "."])
def test_images_of_a_file(written, tmp_path, place):
    path = written(custom_coco())
    write_images(tmp_path / place, ["b.jpg"])
    assert load_custom(path).image_path(2) == tmp_path / place / "b.jpg"


def test_what_has_no_mask_or_no_words_is_counted(written):
    content = custom_coco()
    content["annotations"][0]["sentences"] = []
    del content["annotations"][2]["segmentation"]
    assert load_custom(written(content)).warnings == (
        "1 of 2 refs of birds all lack a mask: twelve.",
        "1 of 2 refs of birds all lack sentences: 10.",
    )


def test_nobody_referred_to_is_an_error(written):
    content = custom_coco()
    content["annotations"] = content["annotations"][1:2]
    with pytest.raises(ValueError, match=r"sentences, expressions or a caption in \S*birds.json"):
        load_custom(written(content))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"caption": "a box"},
            r"one of sentences, expressions, caption, got \['sentences', 'caption'\]",
        ),
        ({"sentences": "a box"}, "sentences as list, got 'a box'"),
        ({"sentences": [""]}, "sentences in words, got ''"),
        ({"sentences": ["box", "\n"]}, r"sentences in words, got '\\n'"),
        ({"sentences": [3]}, "sentences in words, got 3"),
        ({"sentences": [{"sent": "box"}]}, "raw as str, got None"),
        ({"sentences": [{"raw": " "}]}, "sentences in words, got ' '"),
        ({"sentences": [{"raw": "a", "sent_id": "1"}]}, "sent_id as int, got '1'"),
        ({"sentences": [{"raw": "a", "sent_id": 1}, "b"]}, "sent_id of annotation 10 .* got 1"),
        ({"id": None}, "id as int or str, got None"),
        ({"id": True}, "id as int or str, got True"),
        ({"image_id": "2"}, "image_id as int, got '2'"),
        ({"split": 3}, "split as str, got 3"),
    ],
)
def test_a_malformed_annotation_is_named_by_its_place(written, changes, says):
    content = custom_coco()
    content["annotations"][0] |= changes
    with pytest.raises(ValueError, match=says) as caught:
        load_custom(written(content))
    assert "Entry 0 of the annotations in " in str(caught.value)


@pytest.mark.parametrize("key", ["expressions", "caption"])
@pytest.mark.parametrize("value", [3, [{"raw": "a box"}], [""], ""])
def test_malformed_expressions_are_named(written, key, value):
    content = custom_coco()
    del content["annotations"][0]["sentences"]
    content["annotations"][0][key] = value
    with pytest.raises(ValueError, match=f"Entry 0 of the annotations in .*Expected {key}"):
        load_custom(written(content))


def test_what_does_not_fit_together_is_named(written):
    content = custom_coco()
    content["annotations"][0]["image_id"] = 3
    with pytest.raises(ValueError, match=r"image 3 for ref 10 in .*, got none"):
        load_custom(written(content))
    content = custom_coco()
    content["annotations"][2]["id"] = 10
    with pytest.raises(ValueError, match=r"annotation id in .*, got 10 more than once"):
        load_custom(written(content))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "object with images and annotations in .*, got list"),
        ("{", "whole JSON"),
        ("{}", "the images in .* as a list, got None"),
        ('{"images": [], "annotations": {}}', "the annotations in .* as a list"),
    ],
)
def test_another_file_is_refused(tmp_path, content, says):
    path = tmp_path / "birds.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        load_custom(path)


def test_a_image_is_no_dataset(tmp_path):
    write_images(tmp_path, ["a.jpg"])
    with pytest.raises(ValueError, match=r"whole JSON in \S*a\.jpg"):
        load_custom(tmp_path / "a.jpg")


def test_nothing_at_the_path_is_answered_with_what_could_be_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"phrasecut, or the path .*none, where there is nothing"
    ):
        load_custom(tmp_path / "none")


def test_the_examples_of_the_readme_can_be_read(tmp_path):
    """Each fenced JSON block with a file's name above it is that file."""
    lines = (Path(__file__).parents[2] / "refer/README.md").read_text().splitlines()
    for place, line in enumerate(lines):
        if line == "```json":
            name = lines[place - 2].strip("`:")
            end = lines.index("```", place)
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(lines[place + 1 : end]))
    for path in (tmp_path / "birds", tmp_path / "birds.json"):
        split = load_custom(path)
        assert split.num_sentences == 2
        assert split.gt_mask(split.refs[0], overlapping_polygons_dropped=True).sum() == 100
