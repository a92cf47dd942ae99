"""From settings to a split."""

from __future__ import annotations

import argparse
import json
import logging
import shutil

import pytest
from PIL import Image

from hybridgl.errors import DataError, SettingError
from hybridgl.settings import add_arguments
from refer.config import SplitConfig, load_split
from refer.dataset import ImageErrors
from refer.splits import DATASETS
from tests.refer_factories import custom_coco, mini_phrasecut, mini_refer, write_images


def parsed(*argv):
    parser = argparse.ArgumentParser()
    add_arguments(parser, "data", SplitConfig)
    return SplitConfig.from_arguments(parser.parse_args([str(word) for word in argv]))


def chosen(config):
    resolved = config.resolved()
    return resolved.name, resolved.split, resolved.split_by


@pytest.fixture
def root(tmp_path):
    mini_refer().write(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def of_refcoco(root):
    """The arguments of RefCOCO's val, and more."""

    def build(*more):
        return parsed("--dataset", "refcoco", "--refer_data_root", root, *more)

    return build


@pytest.fixture
def birds(tmp_path):
    """A custom dataset in COCO form, whole."""
    path = tmp_path / "birds.json"
    path.write_text(json.dumps(custom_coco()))
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    return path


# What is chosen.


@pytest.mark.parametrize(
    ("argv", "choice", "label"),
    [
        ([], ("shapes", "val", "synthetic"), "shapes-val"),
        (["--dataset", "refcoco"], ("refcoco", "val", "unc"), "refcoco-val"),
        (["--dataset", "phrasecut"], ("phrasecut", "val", "-"), "phrasecut-val"),
        (
            ["--dataset", "refcocog", "--splitBy", "google", "--split", "train"],
            ("refcocog", "train", "google"),
            "refcocog-google-train",
        ),
    ],
)
def test_defaults_of_known_datasets_are_filled_in(argv, choice, label):
    assert chosen(parsed(*argv)) == choice
    assert parsed(*argv).resolved().label == label


def test_the_only_split_of_a_custom_dataset_is_chosen(birds, root):
    config = parsed("--dataset", birds)
    assert (chosen(config), config.resolved().label) == (("birds", "all", "-"), "birds-all")
    folder = (root / "refcoco").rename(root / "cats")
    with pytest.raises(ValueError, match="one of train, val, testA, testB, got none"):
        parsed("--dataset", folder).resolved()
    config = parsed("--dataset", folder, "--split", "testB").resolved()
    assert (config.split, config.label) == ("testB", "cats-unc-testB")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--split", "test"], "train, val, testA, testB, got 'test'"),
        (["--split", ""], "train, val, testA, testB, got ''"),
        (["--dataset", "phrasecut", "--split", "testA"], "train, val, test, miniv, got 'testA'"),
        (["--dataset", "phrasecut", "--split_by", "unc"], "one of -, got 'unc'"),
        (["--limit", "0"], "limit of at least 1, got 0"),
    ],
)
def test_wrong_names_are_refused(argv, says):
    with pytest.raises(ValueError, match=says):
        parsed(*argv).resolved()


@pytest.mark.parametrize("name", ["coco", "x" * 5000, "no/such/file.json"])
def test_an_unknown_dataset_is_answered_with_names_and_paths(capsys, name):
    with pytest.raises(SystemExit):
        parsed("--dataset", name)
    message = capsys.readouterr().err.splitlines()[-1]
    for word in ("--dataset", *DATASETS, "path", "REFER form", "COCO form", repr(name)):
        assert word in message


def test_help_lists_the_known_datasets(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    printed = capsys.readouterr().out
    assert all(dataset in printed for dataset in DATASETS)
    assert "path" in printed


def test_a_known_name_is_not_taken_for_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refcoco").mkdir()
    assert parsed("--dataset", "refcoco").resolved().dataset == "refcoco"
    with pytest.raises(FileNotFoundError, match="got no refs file"):
        parsed("--dataset", "./refcoco").resolved()


# What is loaded.


def test_phrasecut_is_loaded(tmp_path):
    mini_phrasecut().write(tmp_path / "phrasecut", "miniv")
    split = load_split(
        parsed("--dataset", "phrasecut", "--split", "miniv", "--refer_data_root", tmp_path)
    )
    assert (split.dataset, split.num_sentences) == ("phrasecut", 9)
    (warning,) = split.warnings
    assert warning.startswith("Not the whole of phrasecut miniv (-): expected 821 refs, got 9;")


def test_a_custom_dataset_is_loaded(birds):
    split = load_split(parsed("--dataset", birds))
    assert (split.dataset, split.split, split.num_sentences) == ("birds", "all", 3)
    assert split.warnings == ()
    assert split.image_errors == ImageErrors()


def test_a_limit_counts_images_and_says_so(birds):
    split = load_split(parsed("--dataset", birds, "--limit", 1))
    assert list(split.images) == [2]
    assert split.warnings == ("Not the whole of birds all: the first 1 of 2 images.",)
    assert load_split(parsed("--dataset", birds, "--limit", 2)).warnings == ()


def test_data_without_sentences_is_refused(birds):
    content = custom_coco()
    for annotation in content["annotations"][::2]:
        annotation.pop("caption", None)
        annotation["sentences"] = []
    birds.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Expected sentences in birds all, got 2 refs"):
        load_split(parsed("--dataset", birds))


# What is wrong with its images.


def test_image_errors_are_kept_as_data_and_named(of_refcoco, caplog):
    first, second, third = load_split(of_refcoco()).images
    path = load_split(of_refcoco()).image_path
    path(first).unlink()
    path(second).write_bytes(b"")
    Image.new("RGB", (5, 7)).save(path(third))
    caplog.clear()
    with pytest.raises(FileNotFoundError):
        load_split(of_refcoco("--limit", "2"))
    with caplog.at_level(logging.WARNING):
        split = load_split(of_refcoco())
    assert split.image_errors == ImageErrors((first,), (second,), {third: (7, 5)})
    lines = split.warnings[-3:]
    for line, name, what in zip(
        lines,
        [info.file_name for info in split.images.values()],
        ["missing", "corrupt", "another size"],
        strict=True,
    ):
        assert line.startswith("1 of 3 images of refcoco val are ")
        assert name in line
        assert what in line
        assert line in caplog.text
    assert split.num_sentences == 15


def test_all_images_missing_is_an_error_that_names_the_first(of_refcoco, root):
    first = load_split(of_refcoco()).image_path(next(iter(load_split(of_refcoco()).images)))
    shutil.rmtree(root / "images")
    with pytest.raises(FileNotFoundError, match=r"3 images .*3 missing .*README") as caught:
        load_split(of_refcoco())
    assert str(first) in str(caught.value)


def test_only_images_of_the_limit_are_looked_for(of_refcoco):
    split = load_split(of_refcoco())
    split.image_path(list(split.images)[2]).unlink()
    assert load_split(of_refcoco("--limit", "2")).image_errors == ImageErrors()
    assert len(load_split(of_refcoco()).image_errors.missing) == 1


# Where images of custom datasets lie, and what is broken.


def test_images_are_looked_for_in_the_given_folders(birds, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "a.jpg").rename(elsewhere / "a.jpg")
    (tmp_path / "b.jpg").rename(elsewhere / "b.jpg")
    with pytest.raises(
        FileNotFoundError, match=r"2 missing .*; give --image_root DIR, as"
    ) as caught:
        load_split(parsed("--dataset", birds))
    assert f"not in {tmp_path}/images, {tmp_path}." in str(caught.value)
    split = load_split(
        parsed("--dataset", birds, "--image_root", tmp_path, "--image_root", elsewhere)
    )
    assert split.image_errors == ImageErrors()
    assert split.warnings == ()


def test_folders_of_images_have_to_be_there_and_of_a_custom_dataset(birds, of_refcoco, tmp_path):
    with pytest.raises(SettingError, match=r"a folder of images as --image_root, got \S*none, wh"):
        load_split(parsed("--dataset", birds, "--image_root", tmp_path / "none"))
    with pytest.raises(
        SettingError, match="--image_root with a custom dataset, got it with refcoco"
    ):
        load_split(of_refcoco("--image_root", tmp_path))


def test_masks_that_are_referred_to_are_checked(birds, caplog):
    content = custom_coco()
    dense = [[column % 2 for column in range(96)]] * 64
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    content["annotations"][2]["segmentation"] = dense
    birds.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        split = load_split(parsed("--dataset", birds))
    assert split.num_sentences == 3
    assert split.refs_without_mask == (10,)
    assert split.instances(2) == (11,)
    broken, other_form = split.warnings
    assert broken.startswith("1 annotations of birds all have a broken mask, and count as without")
    assert "one: 10; the first: Annotation 10 of image b.jpg: Expected a polygon of" in broken
    assert (
        "a mask in another form, which is read: twelve; the first: Annotation twelve" in other_form
    )
    assert set(split.warnings) <= set(caplog.messages)
    assert split.lenient
    mask_HW = split.gt_mask(split.refs[1], overlapping_polygons_dropped=True)
    assert mask_HW.astype(int).tolist() == dense


@pytest.mark.parametrize("segmentation", [[[1, 2, 3]], [[0] * 96] * 64])
def test_masks_that_are_broken_or_in_another_form_are_refused_strictly(birds, segmentation):
    content = custom_coco()
    content["annotations"][0]["segmentation"] = segmentation
    birds.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"^Annotation 10 of image b\.jpg: Expected"):
        load_split(parsed("--dataset", birds, "--strict"))
    content["annotations"][0]["sentences"] = [" "]
    birds.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"^Entry 0 of the sentences of entry 0 of the ann"):
        parsed("--dataset", birds, "--strict").resolved()
