"""From the command line to a split."""

from __future__ import annotations

import argparse
import json
import logging
import shutil

import pytest
from PIL import Image
from refer.arguments import (
    SplitChoice,
    add_split_arguments,
    check_split_arguments,
    split_from_arguments,
)

from refer.dataset import ImageErrors
from refer.splits import DATASETS
from tests.refer_factories import custom_coco, mini_phrasecut, mini_refer, write_images


def parsed(*argv):
    parser = argparse.ArgumentParser()
    add_split_arguments(parser)
    return parser.parse_args([str(word) for word in argv])


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
    """One's own data in COCO form, whole."""
    path = tmp_path / "birds.json"
    path.write_text(json.dumps(custom_coco()))
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    return path


# What is chosen.


@pytest.mark.parametrize(
    ("argv", "choice", "label"),
    [
        ([], SplitChoice("shapes", "val", "synthetic"), "shapes-val"),
        (["--dataset", "refcoco"], SplitChoice("refcoco", "val", "unc"), "refcoco-val"),
        (["--dataset", "phrasecut"], SplitChoice("phrasecut", "val", "-"), "phrasecut-val"),
        (
            ["--dataset", "refcocog", "--splitBy", "google", "--split", "train"],
            SplitChoice("refcocog", "train", "google"),
            "refcocog-google-train",
        ),
    ],
)
def test_defaults_of_known_datasets_are_filled_in(argv, choice, label):
    assert check_split_arguments(parsed(*argv)) == choice
    assert choice.label == label


def test_the_only_split_of_ones_own_data_is_chosen(birds, root):
    choice = check_split_arguments(parsed("--dataset", birds))
    assert (choice, choice.label) == (SplitChoice("birds", "all", "-"), "birds-all")
    folder = (root / "refcoco").rename(root / "cats")
    with pytest.raises(ValueError, match="one of train, val, testA, testB, got none"):
        check_split_arguments(parsed("--dataset", folder))
    choice = check_split_arguments(parsed("--dataset", folder, "--split", "testB"))
    assert (choice.split, choice.label) == ("testB", "cats-unc-testB")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--split", "test"], "train, val, testA, testB, got 'test'"),
        (["--split", ""], "train, val, testA, testB, got ''"),
        (["--dataset", "phrasecut", "--split", "testA"], "train, val, test, miniv, got 'testA'"),
        (["--dataset", "phrasecut", "--split_by", "unc"], "one of -, got 'unc'"),
        (["--limit", "0"], "at least 1 image, got 0"),
    ],
)
def test_wrong_names_are_refused(argv, says):
    with pytest.raises(ValueError, match=says):
        check_split_arguments(parsed(*argv))


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
    assert check_split_arguments(parsed("--dataset", "refcoco")).dataset == "refcoco"
    with pytest.raises(FileNotFoundError, match="got no refs file"):
        check_split_arguments(parsed("--dataset", "./refcoco"))


# What is loaded.


def test_phrasecut_is_loaded(tmp_path):
    mini_phrasecut().write(tmp_path / "phrasecut", "miniv")
    split = split_from_arguments(
        parsed("--dataset", "phrasecut", "--split", "miniv", "--refer_data_root", tmp_path)
    )
    assert (split.dataset, split.num_sentences) == ("phrasecut", 9)
    (problem,) = split.warnings
    assert problem.startswith("Not the whole of phrasecut miniv (-): expected 821 refs, got 9;")


def test_ones_own_data_is_loaded(birds):
    split = split_from_arguments(parsed("--dataset", birds))
    assert (split.dataset, split.split, split.num_sentences) == ("birds", "all", 3)
    assert split.warnings == ()
    assert split.image_errors == ImageErrors()


def test_a_limit_counts_images_and_says_so(birds):
    split = split_from_arguments(parsed("--dataset", birds, "--limit", 1))
    assert list(split.images) == [2]
    assert split.warnings == ("Not the whole of birds all: the first 1 of 2 images.",)
    assert split_from_arguments(parsed("--dataset", birds, "--limit", 2)).warnings == ()


def test_data_without_sentences_is_refused(birds):
    content = custom_coco()
    for annotation in content["annotations"][::2]:
        annotation.pop("caption", None)
        annotation["sentences"] = []
    birds.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Expected sentences in birds all, got 2 refs"):
        split_from_arguments(parsed("--dataset", birds))


# What is wrong with its images.


def test_faults_are_kept_as_data_and_named(of_refcoco, caplog):
    first, second, third = split_from_arguments(of_refcoco()).images
    path = split_from_arguments(of_refcoco()).image_path
    path(first).unlink()
    path(second).write_bytes(b"")
    Image.new("RGB", (5, 7)).save(path(third))
    caplog.clear()
    with pytest.raises(FileNotFoundError):
        split_from_arguments(of_refcoco("--limit", "2"))
    with caplog.at_level(logging.WARNING):
        split = split_from_arguments(of_refcoco())
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
    first = split_from_arguments(of_refcoco()).image_path(
        next(iter(split_from_arguments(of_refcoco()).images))
    )
    shutil.rmtree(root / "images")
    with pytest.raises(FileNotFoundError, match=r"3 images .*3 are missing .*README") as caught:
        split_from_arguments(of_refcoco())
    assert str(first) in str(caught.value)


def test_only_images_of_the_limit_are_looked_for(of_refcoco):
    split = split_from_arguments(of_refcoco())
    split.image_path(list(split.images)[2]).unlink()
    assert split_from_arguments(of_refcoco("--limit", "2")).image_errors == ImageErrors()
    assert len(split_from_arguments(of_refcoco()).image_errors.missing) == 1
