"""The REFER reader on a small folder in RefCOCO's layout, and on one of full size."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import time

import numpy as np
import pytest
from PIL import Image

from refer import splits
from refer.dataset import Sentence
from refer.image_errors import find_image_errors
from refer.pickles import UnsafePickleError
from refer.refer import IMAGE_FOLDERS, load_refer, load_refer_splits
from tests.refer_factories import (
    HW,
    IMAGES_PER_SPLIT,
    REFS_PER_SPLIT,
    SENTENCES_PER_SPLIT,
    mini_refer,
)


def load(root, dataset="refcoco", split="val", split_by=None, *, strict=False):
    return load_refer(root, dataset, split, split_by, check_counts=False, strict=strict)


def write_and_load(root, mini, split="val", *, strict=False):
    mini.write(root, with_images=False)
    return load(root, mini.dataset, split, mini.split_by, strict=strict)


def warnings_of(split):
    """Return the warnings besides counts: what is written here is never the whole of a dataset."""
    return [line for line in split.warnings if "expected" not in line]


@pytest.fixture(scope="module")
def mini_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    mini_refer().write(root)
    return root


@pytest.mark.parametrize(
    ("dataset", "split_by", "split"),
    [
        (dataset, split_by, split)
        for dataset in IMAGE_FOLDERS
        for split_by, names in splits.SPLITS[dataset].items()
        for split in names
    ],
)
def test_every_split_of_every_dataset_loads(tmp_path, dataset, split_by, split):
    loaded = write_and_load(tmp_path, mini_refer(dataset, split_by), split)
    assert (loaded.dataset, loaded.split_by, loaded.split) == (dataset, split_by, split)
    assert len(loaded.refs) == REFS_PER_SPLIT
    assert len(loaded.images) == IMAGES_PER_SPLIT
    assert loaded.num_sentences == SENTENCES_PER_SPLIT
    assert warnings_of(loaded) == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_json_and_every_pickle_protocol_hold_the_same(tmp_path, mini_root, protocol):
    mini_refer().write(tmp_path / "p", protocol=protocol, with_images=False)
    mini_refer().write(tmp_path / "json", form="json", with_images=False)
    from_pickle, from_json = load(tmp_path / "p"), load(tmp_path / "json")
    assert from_pickle.refs == from_json.refs == load(mini_root).refs
    assert from_pickle.images == from_json.images
    assert from_pickle.annotations == from_json.annotations


def test_the_pickle_is_preferred_to_the_json(tmp_path):
    mini = mini_refer()
    mini.write(tmp_path, with_images=False)
    del mini.refs[:]
    mini.write(tmp_path, form="json", with_images=False)
    assert len(load(tmp_path).refs) == REFS_PER_SPLIT


def test_fields_arrive_as_written(mini_root):
    split = load(mini_root, split="testA")
    ref = split.refs[0]
    assert (ref.ref_id, ref.ann_ids) == (12, (1700060,))
    assert ref.sentences[0] == Sentence(30, "Red box  on the left")
    image = split.images[ref.image_id]
    assert (image.height, image.width) == HW
    ann = split.annotations[ref.ann_ids[0]]
    assert split.gt_mask(ref, overlapping_polygons_dropped=True).sum() == 768
    assert not ann.iscrowd


def test_the_kind_of_a_sentence_is_read_where_given(tmp_path):
    mini = mini_refer("shapes")
    for ref in mini.refs:
        ref["sentences"][0]["kind"] = "position"
    split = write_and_load(tmp_path, mini)
    assert [sentence.kind for sentence in split.refs[0].sentences] == ["position", None, None]
    assert split.image_roots == (tmp_path / "images/shapes",)


def test_the_image_name_comes_from_the_instances(mini_root):
    split = load(mini_root)
    for image_id in split.images:
        assert split.image_path(image_id).name == f"COCO_train2014_{image_id:012d}.jpg"
        with Image.open(split.image_path(image_id)) as image:
            assert image.size == (HW[1], HW[0])


def test_refs_keep_the_order_of_the_file(tmp_path):
    mini = mini_refer()
    rng = np.random.default_rng(0)
    for order in (rng.permutation(len(mini.refs)) for _ in range(3)):
        mini.refs[:] = [mini.refs[i] for i in order]
        split = write_and_load(tmp_path, mini)
        of_split = [entry for entry in mini.refs if entry["split"] == "val"]
        assert [ref.ref_id for ref in split.refs] == [entry["ref_id"] for entry in of_split]
        first_seen = list(dict.fromkeys(entry["image_id"] for entry in of_split))
        assert list(split.images) == list(split.refs_by_image()) == first_seen


def test_refs_of_an_image_are_grouped_though_scattered_in_the_file(mini_root):
    split = load(mini_root)
    grouped = split.refs_by_image()
    assert [len(refs) for refs in grouped.values()] == [2] * IMAGES_PER_SPLIT
    assert sorted(ref.ref_id for refs in grouped.values() for ref in refs) == sorted(
        ref.ref_id for ref in split.refs
    )
    assert all(ref.image_id == image_id for image_id, refs in grouped.items() for ref in refs)
    for refs in grouped.values():
        assert [split.refs.index(ref) for ref in refs] == sorted(split.refs.index(r) for r in refs)


def test_a_limit_keeps_the_first_images_with_all_their_refs(mini_root):
    split = load(mini_root)
    order = list(split.images)
    for n_images in (1, 2, 3, 99):
        limited = split.limited(n_images)
        assert list(limited.images) == list(limited.refs_by_image()) == order[:n_images]
        assert limited.refs == tuple(r for r in split.refs if r.image_id in order[:n_images])
        assert len(limited.annotations) == 3 * len(limited.images)
    assert split.limited(2).limited(1) == split.limited(1)


@pytest.mark.parametrize("n_images", [0, -3])
def test_a_limit_below_one_is_refused(mini_root, n_images):
    with pytest.raises(ValueError, match=f"at least 1 image, got {n_images}"):
        load(mini_root).limited(n_images)


def test_splits_match_by_equality_not_by_substring(tmp_path):
    mini = mini_refer()
    stray = {**mini.refs[0], "ref_id": 900, "split": "val2"}
    mini.refs.append(stray)
    assert 900 not in [ref.ref_id for ref in write_and_load(tmp_path, mini).refs]
    with pytest.raises(ValueError, match="train, val, testA, testB, got 'test'"):
        load(tmp_path, split="test")


def test_only_what_the_split_needs_is_kept(mini_root):
    split = load(mini_root)
    assert {ann.image_id for ann in split.annotations.values()} == set(split.images)
    assert len(split.images) == IMAGES_PER_SPLIT
    assert sum(ann.iscrowd for ann in split.annotations.values()) == IMAGES_PER_SPLIT


def test_an_annotation_without_mask_is_named_not_dropped(tmp_path, caplog):
    mini = mini_refer()
    by_id = {ann["id"]: ann for ann in mini.instances["annotations"]}
    ref = next(entry for entry in mini.refs if entry["split"] == "val")
    by_id[ref["ann_id"]]["segmentation"] = []
    split = write_and_load(tmp_path, mini)
    assert len(split.refs) == REFS_PER_SPLIT
    assert split.refs_without_mask == (ref["ref_id"],)
    (warning,) = warnings_of(split)
    assert warning == f"1 of 6 refs of refcoco val lack a mask: {ref['ref_id']}."
    assert warning in caplog.text


def test_a_ref_without_sentences_is_named(tmp_path):
    mini = mini_refer()
    ref = next(entry for entry in mini.refs if entry["split"] == "val")
    ref["sentences"] = []
    split = write_and_load(tmp_path, mini)
    assert split.refs_without_sentences == (ref["ref_id"],)
    assert warnings_of(split) == [f"1 of 6 refs of refcoco val lack sentences: {ref['ref_id']}."]


def test_the_first_five_refs_without_sentences_are_named(tmp_path):
    mini = mini_refer()
    for entry in mini.refs:
        entry["sentences"] = []
    split = write_and_load(tmp_path, mini)
    named = ", ".join(str(ref.ref_id) for ref in split.refs[:5])
    assert warnings_of(split) == [f"6 of 6 refs of refcoco val lack sentences: {named} and 1 more."]


def test_every_split_is_loaded_at_once(tmp_path):
    mini = mini_refer()
    next(entry for entry in mini.refs if entry["split"] == "testB")["ann_id"] = 42
    mini.write(tmp_path, with_images=False)
    loaded = load_refer_splits(tmp_path, "refcoco", "unc")
    assert "annotation 42" in str(loaded.pop("testB"))
    assert list(loaded) == ["train", "val", "testA"]
    for name, split in loaded.items():
        assert (split.refs, split.annotations) == (
            load(tmp_path, split=name).refs,
            load(tmp_path, split=name).annotations,
        )


# Counts.


def test_a_wrong_number_of_refs_names_both_numbers(mini_root):
    with pytest.raises(ValueError, match=r"expected 3811 refs, got 6; expected 1500 images, got 3"):
        load_refer(mini_root, "refcoco", "val")


@pytest.fixture
def expect(monkeypatch):
    def set_counts(refs, images, sentences, checked):
        counts = splits.ExpectedCounts(refs, images, sentences, sentences_checked=checked)
        monkeypatch.setattr(splits, "expected_counts", lambda *_: counts)

    return set_counts


@pytest.mark.parametrize("sentences", [SENTENCES_PER_SPLIT, None])
def test_right_counts_pass_without_a_word(mini_root, expect, caplog, sentences):
    expect(REFS_PER_SPLIT, IMAGES_PER_SPLIT, sentences, checked=True)
    assert load_refer(mini_root, "refcoco", "val").warnings == ()
    assert caplog.text == ""


def test_an_unchecked_sentence_count_only_warns(mini_root, expect, caplog):
    expect(REFS_PER_SPLIT, IMAGES_PER_SPLIT, 99, checked=False)
    with caplog.at_level(logging.WARNING):
        (warning,) = load_refer(mini_root, "refcoco", "val").warnings
    assert "expected 99 sentences, got 15" in warning
    assert warning in caplog.text


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ((6, 3, 99, True), "expected 99 sentences, got 15"),
        ((5, 3, 15, True), "expected 5 refs, got 6"),
        ((6, 4, 15, True), "expected 4 images, got 3"),
        ((6, 4, 15, False), "expected 4 images, got 3"),
    ],
)
def test_certain_counts_are_errors(mini_root, expect, counts, says):
    expect(*counts[:3], checked=counts[3])
    with pytest.raises(ValueError, match=says):
        load_refer(mini_root, "refcoco", "val")


def test_a_subset_on_purpose_is_read_and_named(mini_root, caplog):
    with caplog.at_level(logging.WARNING):
        (warning,) = load(mini_root).warnings
    assert warning.startswith("Not the whole of refcoco val (unc): expected 3811 refs, got 6;")
    assert warning in caplog.text


def test_sha256_are_those_of_the_files_read(mini_root):
    sha256_by_file = load(mini_root).sha256_by_file
    assert sha256_by_file == {
        name: hashlib.sha256((mini_root / "refcoco" / name).read_bytes()).hexdigest()
        for name in ("instances.json", "refs(unc).p")
    }


def test_the_synthetic_world_has_no_counts_to_miss(tmp_path):
    mini_refer("shapes").write(tmp_path, with_images=False)
    assert len(load_refer(tmp_path, "shapes", "val").refs) == REFS_PER_SPLIT


# What is missing.


def test_a_missing_root_shows_the_expected_tree(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data folder") as caught:
        load(tmp_path / "none")
    for expected in ("instances.json", "refs(unc).p", "refs(unc).json", "train2014", "README.md"):
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("gone", "asked", "says"),
    [
        ("instances.json", {}, r"got no \S*instances.json"),
        ("refs(unc).p", {}, r"neither \S*refs\(unc\)\.p nor refs\(unc\)\.json"),
        (None, {"dataset": "refcocog"}, r"no folder \S*refcocog"),
        (None, {"split_by": "google"}, r"neither \S*refs\(google\)"),
    ],
)
def test_a_missing_file_is_named(tmp_path, gone, asked, says):
    mini_refer().write(tmp_path, with_images=False)
    if gone:
        (tmp_path / "refcoco" / gone).unlink()
    with pytest.raises(FileNotFoundError, match=says):
        load(tmp_path, **asked)


def test_phrasecut_is_not_in_refer_form(mini_root):
    with pytest.raises(ValueError, match=r"REFER form .*got 'phrasecut'"):
        load(mini_root, "phrasecut")


# What is damaged.


@pytest.mark.parametrize("content", ["", "{", '{"images": [', "\x00", "[" * 100000])
@pytest.mark.parametrize("name", ["instances.json", "refs(unc).json"])
def test_damaged_json_is_named(tmp_path, name, content):
    mini_refer().write(tmp_path, form="json", with_images=False)
    (tmp_path / "refcoco" / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="whole JSON in .*" + name.replace("(", r"\(")[:-6]):
        load(tmp_path)


def test_a_hostile_refs_file_is_refused(tmp_path):
    mini_refer().write(tmp_path, with_images=False)
    (tmp_path / "refcoco/refs(unc).p").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(UnsafePickleError, match=r"os\.system"):
        load(tmp_path)


@pytest.mark.parametrize("content", [{"refs": []}, "refs", None, 5])
def test_refs_that_are_no_list_are_refused(tmp_path, content):
    mini_refer().write(tmp_path, with_images=False)
    (tmp_path / "refcoco/refs(unc).p").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match=r"the refs in \S*refs\(unc\).p as a list"):
        load(tmp_path)


def test_an_empty_split_names_the_splits_that_are_there(tmp_path):
    mini = mini_refer()
    mini.refs[:] = [entry for entry in mini.refs if entry["split"] != "val"]
    with pytest.raises(ValueError, match=r"split 'val' .*got those of testA, testB, train"):
        write_and_load(tmp_path, mini)
    mini.refs.clear()
    with pytest.raises(ValueError, match="got those of no split"):
        write_and_load(tmp_path, mini)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ref_id", None),
        ("ref_id", "7"),
        ("ann_id", True),
        ("image_id", 2.0),
        ("split", 3),
        ("sentences", None),
        ("sentences", {"raw": "x"}),
        ("sentences", [7]),
        ("sentences", [{"sent_id": 1, "sent": "no raw"}]),
        ("sentences", [{"sent_id": 1, "raw": b"bytes"}]),
        ("sentences", [{"sent_id": "1", "raw": ""}]),
        ("sentences", [{"sent_id": 1, "raw": "", "kind": 4}]),
    ],
)
def test_a_malformed_ref_is_refused_strictly_by_its_place(tmp_path, key, value):
    mini = mini_refer()
    index = next(i for i, entry in enumerate(mini.refs) if entry["split"] == "val")
    mini.refs[index][key] = value
    with pytest.raises(ValueError, match=rf"[Ee]ntry {index} of the refs in \S*refs\(unc\).p"):
        write_and_load(tmp_path, mini, strict=True)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("images", "id", None),
        ("images", "id", [3]),
        ("images", "file_name", 3),
        ("images", "height", 0),
        ("images", "width", "96"),
        ("annotations", "id", None),
        ("annotations", "image_id", {}),
    ],
)
def test_a_malformed_instance_is_refused_strictly_by_its_place(tmp_path, part, key, value):
    mini = mini_refer()
    mini.instances[part][0][key] = value
    with pytest.raises(ValueError, match=rf"Entry 0 of the {part} in \S*instances.json: .*{key}"):
        write_and_load(tmp_path, mini, "train", strict=True)


@pytest.mark.parametrize("form", ["pickle", "json"])
@pytest.mark.parametrize("number", [str, float], ids=["text", "float"])
def test_numbers_are_read_however_they_are_written(tmp_path, form, number):
    mini = mini_refer()
    before = write_and_load(tmp_path / "plain", mini)
    for entry in [*mini.refs, *mini.instances["images"], *mini.instances["annotations"]]:
        for key in {"ref_id", "ann_id", "image_id", "id", "height", "width", "iscrowd"} & {*entry}:
            entry[key] = number(entry[key])
        for sentence in entry.get("sentences", []):
            sentence["sent_id"] = number(sentence["sent_id"])
    if number is str:  # of a size, text may be "64", but not "64.0"
        assert mini.instances["images"][0]["height"] == "64"
    mini.write(tmp_path, form=form, with_images=False)
    after = load(tmp_path)
    assert after.refs == before.refs
    assert (after.images, after.annotations) == (before.images, before.annotations)
    assert warnings_of(after) == []
    assert not before.lenient
    with pytest.raises(ValueError, match=r"as int, got"):
        load(tmp_path, strict=True)


def test_broken_entries_are_left_out_counted_and_named(tmp_path):
    mini = mini_refer()
    val = [i for i, entry in enumerate(mini.refs) if entry["split"] == "val"]
    mini.refs[val[0]]["ref_id"] = None
    mini.refs[val[1]]["sentences"] = "the red box"
    mini.refs[val[2]]["sentences"][1]["raw"] = " \n"
    mini.refs[val[3]]["sentences"] += [7, {"sent_id": 1.5, "raw": "x"}]
    mini.refs[val[4]]["sentences"][0]["kind"] = 4
    mini.refs.extend([5, {"split": 3}])
    train_image = mini.refs[0]["image_id"]
    mini.instances["annotations"] += [None, {"id": 1.5, "image_id": train_image}]
    mini.instances["images"].append({"id": True})
    split = write_and_load(tmp_path, mini)
    sentences = [len(entry["sentences"]) for entry in (mini.refs[i] for i in val[3:])]
    assert len(split.refs) == REFS_PER_SPLIT - 2
    assert split.num_sentences == 2 + sum(sentences) - 2
    assert split.lenient
    lines = warnings_of(split)
    folder = tmp_path / "refcoco"
    for start, said in (
        (
            f"4 broken refs are left out of {folder}/refs(unc).p: entry {val[0]} of the refs, ",
            "ref_id",
        ),
        (
            f"3 broken sentences are left out of {folder}/refs(unc).p: entry 1 of the ",
            "raw",
        ),
        (f"1 kinds of sentences that are no text are left out of {folder}/refs(unc).p", "kind"),
        (f"2 broken annotations are left out of {folder}/instances.json", "an object, got None"),
        (f"1 broken images are left out of {folder}/instances.json", "id as int, got True"),
    ):
        (line,) = [line for line in lines if line.startswith(start)]
        assert f"; the first: Expected {said}" in line or said in line
    assert len(lines) == 5
    with pytest.raises(ValueError, match=rf"^Entry {val[0]} of the refs in .*: Expected ref_id"):
        load(tmp_path, strict=True)


def test_a_split_of_broken_refs_alone_names_the_first(tmp_path):
    mini = mini_refer()
    for entry in mini.refs:
        entry["ann_id"] = 1.5
    with pytest.raises(
        ValueError, match=r"got none that can be read \(entry 3 .*got 1\.5; .*\); ch"
    ):
        write_and_load(tmp_path, mini)


def test_a_needed_entry_that_is_broken_is_named(tmp_path):
    mini = mini_refer()
    ann_id = a_val_ref(mini)["ann_id"]
    index = [ann["id"] for ann in mini.instances["annotations"]].index(ann_id)
    mini.instances["annotations"][index]["image_id"] = {}
    says = (
        rf"annotation {ann_id} for ref .* none that can be read \(entry {index} of the annotations"
    )
    with pytest.raises(ValueError, match=says):
        write_and_load(tmp_path, mini)


@pytest.mark.parametrize(
    ("iscrowd", "crowd"),
    [(0, 0), (1, 1), ("0", 0), ("1", 1), (0.0, 0), (True, 1), (False, 0), (None, 0)],
)
def test_crowds_are_told_however_they_are_marked(tmp_path, iscrowd, crowd):
    mini = mini_refer()
    mini.instances["annotations"][0]["iscrowd"] = iscrowd
    split = write_and_load(tmp_path, mini, "train")
    assert split.annotations[1700000].iscrowd == bool(crowd)
    assert warnings_of(split) == []


@pytest.mark.parametrize("iscrowd", [2, "no", 0.5, []])
def test_what_may_be_a_crowd_is_named(tmp_path, iscrowd):
    mini = mini_refer()
    mini.instances["annotations"][0]["iscrowd"] = iscrowd
    split = write_and_load(tmp_path, mini, "train")
    assert split.annotations[1700000].iscrowd
    (line,) = warnings_of(split)
    assert "neither 0 nor 1 are proposals only if referred to in" in line
    with pytest.raises(ValueError, match="iscrowd as 0 or 1"):
        load(tmp_path, split="train", strict=True)


@pytest.mark.parametrize("size", [{}, {"height": 0, "width": 9}, {"height": "tall", "width": 96}])
def test_a_missing_size_is_that_of_the_file(tmp_path, size):
    mini = mini_refer()
    entry = mini.instances["images"][0]
    del entry["height"], entry["width"]
    entry |= size
    with pytest.raises(ValueError, match=r"height and width of image 581857, or its file, got nei"):
        write_and_load(tmp_path, mini, "train")
    mini.write(tmp_path)
    split = load(tmp_path, split="train")
    assert (split.images[581857].height, split.images[581857].width) == HW
    line = warnings_of(split)[-1]
    assert line.startswith("1 of 3 images of refcoco train have no annotated size")
    assert entry["file_name"] in line


def test_an_image_without_a_name_counts_as_missing(tmp_path):
    mini = mini_refer()
    mini.write(tmp_path)
    mini.instances["images"][0]["file_name"] = 5
    split = write_and_load(tmp_path, mini, "train")
    assert "1 images without a file_name count as missing in " in warnings_of(split)[0]
    assert find_image_errors(split).missing == (581857,)
    assert split.num_sentences == SENTENCES_PER_SPLIT


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_encoding_of_json_is_read(tmp_path, encoding):
    mini = mini_refer()
    mini.refs[0]["sentences"][0]["raw"] = "das rötliche Ding"
    mini.write(tmp_path, form="json", with_images=False)
    before = load(tmp_path)
    for path in (tmp_path / "refcoco").iterdir():
        path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    assert load(tmp_path).refs == before.refs


def test_published_counts_are_those_of_what_can_be_read(tmp_path, monkeypatch):
    mini = mini_refer()
    counts = splits.ExpectedCounts(6, 3, 15, sentences_checked=True)
    monkeypatch.setattr(splits, "expected_counts", lambda *_: counts)
    mini.write(tmp_path, with_images=False)
    assert load_refer(tmp_path, "refcoco", "val").warnings == ()
    a_val_ref(mini)["sentences"][0]["raw"] = ""
    mini.write(tmp_path, with_images=False)
    with pytest.raises(ValueError, match="expected 15 sentences, got 14"):
        load_refer(tmp_path, "refcoco", "val")


@pytest.mark.parametrize("part", ["images", "annotations"])
def test_instances_without_a_part_are_refused(tmp_path, part):
    mini = mini_refer()
    del mini.instances[part]
    with pytest.raises(ValueError, match=rf"the {part} in \S*instances.json as a list, got None"):
        write_and_load(tmp_path, mini)


def test_instances_that_are_no_object_are_refused(tmp_path):
    mini_refer().write(tmp_path, with_images=False)
    (tmp_path / "refcoco/instances.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="object with images and annotations"):
        load(tmp_path)


# What does not fit together.


def a_val_ref(mini):
    return next(entry for entry in mini.refs if entry["split"] == "val")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("ann_id", 42, "Expected annotation 42 for ref 6"),
        ("image_id", 42, "Expected image 42 for ref 6"),
        ("ann_id", 1700000, "annotation 1700000 in image 581746 for ref 6"),
    ],
)
def test_what_a_ref_needs_and_the_instances_lack_is_named(tmp_path, key, value, says):
    mini = mini_refer()
    a_val_ref(mini)[key] = value
    found = "one in image 581857" if value == 1700000 else "none"
    with pytest.raises(ValueError, match=rf"{says} in \S*instances\.json, got {found}; use"):
        write_and_load(tmp_path, mini)


@pytest.mark.parametrize("name", ["ref_id", "sent_id", "image id", "annotation id"])
def test_duplicates_are_named(tmp_path, name):
    mini = mini_refer()
    ref = a_val_ref(mini)
    other = next(e for e in mini.refs if e["split"] == "val" and e["ref_id"] != ref["ref_id"])
    if name == "ref_id":
        other["ref_id"], twice = ref["ref_id"], ref["ref_id"]
    elif name == "sent_id":
        twice = ref["sentences"][1]["sent_id"]
        other["sentences"][0]["sent_id"] = twice
    elif name == "image id":
        twice = ref["image_id"]
        mini.instances["images"].append({**mini.instances["images"][3], "id": twice})
    else:
        twice = ref["ann_id"]
        by_id = {ann["id"]: ann for ann in mini.instances["annotations"]}
        mini.instances["annotations"].append(by_id[twice])
    with pytest.raises(ValueError, match=rf"every {name} in \S+ to be unique, got {twice} more"):
        write_and_load(tmp_path, mini)


# Size.


@pytest.mark.slow
def test_fifty_thousand_refs_load_in_seconds(tmp_path):
    n_refs, n_images = 50_000, 20_000
    polygon = [round(8.25 + 0.5 * i, 2) for i in range(60)]
    sentence = {"raw": "the man on the left", "sent": "the man on the left"}
    tokens = sentence["sent"].split()
    split_of = ["train" if i % 10 else "val" for i in range(n_images)]
    refs = [
        {
            "ref_id": i,
            "ann_id": i,
            "image_id": i % n_images,
            "category_id": 1,
            "split": split_of[i % n_images],
            "file_name": f"COCO_train2014_{i:012d}_{i}.jpg",
            "sent_ids": [3 * i, 3 * i + 1, 3 * i + 2],
            "sentences": [{"sent_id": 3 * i + j, "tokens": tokens, **sentence} for j in range(3)],
        }
        for i in range(n_refs)
    ]
    folder = tmp_path / "refcoco"
    folder.mkdir()
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    annotation = json.dumps({"segmentation": [polygon], "bbox": [1, 2, 3, 4], "area": 9.5})[1:]
    images = ",".join(
        f'{{"id": {i}, "file_name": "{i}.jpg", "height": 480, "width": 640}}'
        for i in range(n_images)
    )
    annotations = ",".join(
        f'{{"id": {i}, "image_id": {i % n_images}, "category_id": 1, "iscrowd": 0, {annotation}'
        for i in range(n_refs)
    )
    (folder / "instances.json").write_text(
        f'{{"images": [{images}], "annotations": [{annotations}]}}', encoding="utf-8"
    )
    start = time.process_time()
    train = load(tmp_path, split="train")
    assert time.process_time() - start < 8
    assert (len(train.refs), len(train.images), train.num_sentences) == (45_000, 18_000, 135_000)
