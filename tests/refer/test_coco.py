"""Datasets by path: folders in REFER form, and files in COCO form."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from refer.coco import custom_name, load_custom, resolve_split
from refer.dataset import Sentence
from refer.image_errors import find_image_errors
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


MALFORMED = [
    (
        {"caption": "a box"},
        r"one of sentences, expressions, caption, got \['sentences', 'caption'\]",
    ),
    ({"sentences": "a box"}, "sentences as list, got 'a box'"),
    ({"sentences": [""]}, "raw in words, got ''"),
    ({"sentences": ["box", "\n"]}, r"raw in words, got '\\n'"),
    ({"sentences": [3]}, "an object, got 3"),
    ({"sentences": [{"sent": "box"}]}, "raw as str, got None"),
    ({"sentences": [{"raw": " "}]}, "raw in words, got ' '"),
    ({"sentences": [{"raw": "a", "sent_id": "1"}]}, "sent_id as int, got '1'"),
    ({"sentences": [{"raw": "a", "annotation_ids": 11}]}, "annotation_ids as list, got 11"),
    (
        {"sentences": [{"raw": "a", "annotation_ids": [11]}]},
        r"annotation_ids with 10, .*got \[11\]",
    ),
    ({"sentences": [{"raw": "a", "annotation_ids": []}]}, "annotation_ids with 10"),
    ({"expressions": [""], "sentences": None}, "raw in words, got ''"),
    ({"expressions": 3, "sentences": None}, "expressions as list, got 3"),
    ({"caption": "", "sentences": None}, "raw in words, got ''"),
    ({"caption": ["a"], "sentences": None}, "caption as str, got"),
    ({"id": None}, "id as int or a name, got None"),
    ({"id": True}, "id as int or a name, got True"),
    ({"id": "10"}, "id as int or a name, got '10'"),
    ({"image_id": "2"}, "image_id as int, got '2'"),
    ({"split": 3}, "split as str, got 3"),
]


@pytest.mark.parametrize(("changes", "says"), MALFORMED)
def test_a_malformed_annotation_is_refused_strictly_by_its_place(written, changes, says):
    content = custom_coco()
    content["annotations"][0] |= changes
    with pytest.raises(ValueError, match=f"Expected {says}") as caught:
        load_custom(written(content), strict=True)
    assert "ntry 0 of the annotations in " in str(caught.value)


def test_what_is_broken_of_an_annotation_is_left_out_counted_and_named(written):
    content = custom_coco()
    first, spare, last = content["annotations"]
    first["sentences"] = ["the red box", " ", {"raw": 5}, "box on the left"]
    content["annotations"] += [
        {**spare, "id": 13, "caption": 3},
        {**first, "id": None},
        {**last, "id": 14, "caption": "a thing", "split": 7},
    ]
    split = load_custom(written(content))
    # The place of a sentence in its list stays its id.
    assert split.refs[0].sentences == (Sentence(0, "the red box"), Sentence(3, "box on the left"))
    assert [ref.ref_id for ref in split.refs] == [10, "twelve", 13, 14]
    assert split.instances(2) == (10, 11)  # 13 has the segmentation of 11
    *lines, last_line = split.warnings
    assert [re.split(r" (?:in|of) /", line)[0] for line in lines] == [
        "2 broken sentences are left out",
        "1 annotations lose what is said of them, which is broken,",
        "1 broken annotations are left out",
        "1 splits that are no text are left out",
    ]
    assert last_line == "1 of 4 refs of birds all lack sentences: 13."
    assert "entry 1 of the sentences of entry 0 of the annotations, entry 2 of" in split.warnings[0]
    assert split.lenient


def test_ids_of_one_number_are_one_id_however_they_are_written(written):
    content = custom_coco()
    content["images"][1] |= {"id": "2", "height": 64.0, "width": "96"}
    content["annotations"][0] |= {"id": "10", "image_id": 2.0}
    split = load_custom(written(content))
    assert split.refs == load_custom(written(custom_coco(), "plain.json")).refs
    assert (split.images[2].height, split.images[2].width) == HW
    assert [line for line in split.warnings if "left out" in line] == []
    content["annotations"][1]["id"] = "010"
    with pytest.raises(ValueError, match=r"every annotation id in .* got 10 more than once"):
        load_custom(written(content))


# Sentences of several annotations.


def test_a_sentence_of_several_annotations_means_their_union(written):
    content = custom_coco()
    both = {"raw": "both things", "annotation_ids": [10, "11"]}
    content["annotations"][0]["sentences"] += [both, {**both, "annotation_ids": [10]}]
    content["annotations"][1]["sentences"] = [
        {**both, "raw": "Both things ", "annotation_ids": [11, 10]},
        {"raw": "they", "annotation_ids": [11, 10]},
    ]
    split = load_custom(written(content))
    alone, together, other = split.refs
    assert (alone.ref_id, [one.raw for one in alone.sentences]) == (
        10,
        ["the red box", "box on the left", "both things"],
    )
    assert (together.ref_id, together.ann_ids, together.image_id) == ("10+11", (10, 11), 2)
    assert together.sentences == (Sentence(0, "both things"), Sentence(1, "they"))
    assert other.ref_id == "twelve"
    masks_HW = [split.instance_mask(i, overlapping_polygons_dropped=True) for i in (10, 11)]
    union_HW = split.gt_mask(together, overlapping_polygons_dropped=True)
    np.testing.assert_array_equal(union_HW, masks_HW[0] | masks_HW[1])
    assert union_HW.sum() > masks_HW[0].sum() > 0


def test_a_sentence_that_one_annotation_has_twice_stays_twice(written):
    content = custom_coco()
    both = {"raw": "both", "annotation_ids": [10, 11]}
    content["annotations"][0]["sentences"] = [both, both]
    content["annotations"][1]["sentences"] = [both, both]
    assert [one.sent_id for one in load_custom(written(content)).refs[0].sentences] == [0, 1]


def test_annotations_that_a_sentence_means_have_to_be_there_and_in_its_image(written):
    content = custom_coco()
    content["annotations"][0]["sentences"] = [{"raw": "both", "annotation_ids": [10, 99]}]
    with pytest.raises(ValueError, match=r"annotation 99 for ref 10\+99 in .*, got none"):
        load_custom(written(content))
    content["annotations"][0]["sentences"][0]["annotation_ids"] = [10, "twelve"]
    with pytest.raises(ValueError, match=r"annotation twelve in image 2 .* got one in image 1"):
        load_custom(written(content))


def test_a_sentence_that_annotations_of_an_image_share_is_named(written):
    content = custom_coco()
    content["annotations"][1]["caption"] = " The red BOX"
    content["annotations"][2]["caption"] = "the red box"  # in another image
    path = written(content)
    split = load_custom(path)
    assert split.num_sentences == 4
    assert split.warnings == (
        f"1 sentences in {path} are said of several annotations of an image, and are a sample of "
        "each: 'the red box' (10, 11). Where one means all of them together, say so by its "
        "annotation_ids.",
    )
    assert not split.lenient


# Images under other names.


@pytest.fixture
def named(written):
    """Loads a dataset whose two images have these names."""

    def load(first, second="none.jpg", **options):
        content = custom_coco()
        content["images"][0]["file_name"], content["images"][1]["file_name"] = first, second
        return load_custom(written(content), **options)

    return load


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (r"images\a.jpg", "images/a.jpg"),
        (r"..\..\upload\4\a.jpg", "images/upload/4/a.jpg"),
        (r"..\..\upload\4\a.jpg", "4/a.jpg"),
        (r"C:\data\birds\a.jpg", "images/a.jpg"),
        ("C:a.jpg", "a.jpg"),
        ("/home/else/birds/train/a.jpg", "images/train/a.jpg"),
        ("//server/share/a.jpg", "a.jpg"),
        ("../a.jpg", "images/a.jpg"),
        ("a.JPG", "images/a.jpg"),
        ("a.jpg", "images/A.JPG"),
        (r"Train\A.jpg", "images/train/a.JPG"),
        (r"D:\x\TRAIN\a.jpg", "images/train/a.jpg"),
    ],
)
def test_an_image_is_found_by_an_end_of_its_name(named, tmp_path, name, place):
    folder, file = (tmp_path / place).parent, (tmp_path / place).name
    write_images(folder, [file])
    split = named(name)
    assert split.image_path(1) == tmp_path / place
    (line,) = [line for line in split.warnings if "another name" in line]
    assert (
        line
        == f"1 of 2 images of birds all are found under another name: {name} ({tmp_path / place})."
    )


def test_names_that_are_files_as_they_stand_stay(named, tmp_path):
    write_images(tmp_path / "images", ["a.jpg", "b.jpg"])
    write_images(tmp_path / "beside", ["a.jpg"])
    split = named("../beside/a.jpg", "b.jpg")
    assert split.image_path(1).resolve() == tmp_path / "beside/a.jpg"
    assert split.warnings == ()
    assert named(str(tmp_path / "beside/a.jpg")).image_path(1) == tmp_path / "beside/a.jpg"


def test_a_longer_end_comes_before_a_shorter_and_the_case_that_is_written_before_another(
    named, tmp_path
):
    for folder in ("images/train", "images", "train"):
        write_images(tmp_path / folder, ["a.jpg"])
    assert named(r"x\train\a.jpg").image_path(1) == tmp_path / "images/train/a.jpg"
    write_images(tmp_path / "images", ["B.jpg"])
    write_images(tmp_path, ["b.jpg"])
    assert named(r"x\b.jpg").image_path(1) == tmp_path / "b.jpg"
    assert named(r"x\B.JPG").image_path(1) == tmp_path / "images/B.jpg"


@pytest.mark.parametrize("name", ["", ".", "..", "/", "C:\\", "x" * 5000, "a\0b", "\udc80.jpg"])
def test_names_that_no_file_can_have_are_missing(named, tmp_path, name):
    write_images(tmp_path / "images", ["b.jpg"])
    split = named(name, "b.jpg")
    assert find_image_errors(split).missing == (1,)
    assert split.image_paths == {}


def test_no_name_leads_out_of_the_image_folders(named, tmp_path):
    write_images(tmp_path.parent, ["outside.jpg"])
    for name in (r"..\outside.jpg", r"images\..\..\outside.jpg", r"/x/../../outside.jpg"):
        assert named(name).image_paths == {}


def test_images_that_a_shorter_name_would_make_one_are_missing(named, tmp_path):
    write_images(tmp_path / "images", ["a.jpg"])
    split = named(r"train\a.jpg", r"val\a.jpg")
    assert find_image_errors(split).missing == (2, 1)
    (line,) = split.warnings
    assert "2 of 2 images of birds all count as missing, as a shorter name would make" in line
    # One that has the file by its own name keeps it; one name may be that of two images.
    split = named(r"train\a.jpg", "a.jpg")
    assert find_image_errors(split).missing == (1,)
    assert find_image_errors(named(r"train\a.jpg", "train/a.jpg")).missing == ()


def test_one_file_in_two_folders_of_images_is_one(named, tmp_path):
    write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "link").symlink_to(tmp_path / "images")
    split = named(r"link\x\a.jpg", "link/a.jpg")
    assert find_image_errors(split).missing == (1,)


def test_names_that_differ_by_case_alone_are_not_taken_for_each_other(named, tmp_path):
    write_images(tmp_path / "images", ["a.jpg", "A.jpg"])
    assert find_image_errors(named("a.JPG", "A.jpg")).missing == (1,)


def test_folders_of_images_come_before_those_of_the_data(named, tmp_path):
    for folder in ("images", "first", "second"):
        write_images(tmp_path / folder, ["b.jpg"])
    write_images(tmp_path / "second", ["a.jpg"])
    roots = tmp_path / "first", tmp_path / "second"
    split = named("a.jpg", "b.jpg", image_roots=roots)
    assert [split.image_path(i) for i in (1, 2)] == [roots[1] / "a.jpg", roots[0] / "b.jpg"]
    assert split.warnings == ()


def test_folders_are_listed_once_and_only_where_a_name_fails(named, tmp_path, monkeypatch):
    listed = []
    iterdir = Path.iterdir

    def counted(path):
        listed.append(path)
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", counted)
    write_images(tmp_path / "images", ["a.jpg", "b.jpg"])
    named("a.jpg", "b.jpg")
    assert listed == []
    named(r"x\a.jpg", r"y\b.jpg")
    assert len(listed) == len(set(listed)) > 0


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
