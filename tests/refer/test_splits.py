"""The table of splits, against the published counts."""

from __future__ import annotations

import pytest

from refer.splits import DATASETS, SPLITS, expected_counts, validate

LEGAL = [
    (dataset, split_by, split)
    for dataset, ways in SPLITS.items()
    for split_by, names in ways.items()
    for split in names
]


@pytest.mark.parametrize(("dataset", "split_by", "split"), LEGAL)
def test_every_listed_split_is_legal(dataset, split_by, split):
    assert validate(dataset, split, split_by) == split_by


@pytest.mark.parametrize(
    ("dataset", "split_by"),
    [
        ("shapes", "synthetic"),
        ("refcoco", "unc"),
        ("refcoco+", "unc"),
        ("refcocog", "umd"),
        ("phrasecut", "-"),
    ],
)
def test_default_split_by(dataset, split_by):
    assert validate(dataset, "val") == split_by


@pytest.mark.parametrize(
    ("dataset", "split_by", "refs", "sentences"),
    [
        ("refcoco", "unc", 50000, 142210),
        ("refcoco", "google", 50000, None),
        ("refcoco+", "unc", 49856, 141564),
        ("refcocog", "umd", 49822, 95010),
        ("refcocog", "google", 49822, 95010),
    ],
)
def test_the_splits_add_up_to_the_published_dataset(dataset, split_by, refs, sentences):
    counts = SPLITS[dataset][split_by].values()
    assert sum(count.refs for count in counts) == refs
    if sentences is not None:
        assert sum(count.sentences for count in counts) == sentences


def test_only_refcoco_unc_has_certain_sentence_counts():
    certain = {
        (dataset, split_by)
        for dataset, split_by, split in LEGAL
        if (counts := expected_counts(dataset, split, split_by)) and counts.sentences_checked
    }
    assert certain == {("refcoco", "unc")}


def test_counts_of_single_splits():
    test_b = expected_counts("refcoco", "testB")
    assert (test_b.refs, test_b.images, test_b.sentences) == (1810, 750, 5095)
    assert expected_counts("refcocog", "val", "google").images == 4650
    assert expected_counts("phrasecut", "miniv").refs == 821
    assert expected_counts("shapes", "val") is None


def test_an_unknown_dataset_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="got 'refcoco-plus'") as caught:
        validate("refcoco-plus", "val")
    assert all(dataset in str(caught.value) for dataset in DATASETS)


@pytest.mark.parametrize("split", ["test", "A", "testa", "testAB", "", "train,val", "miniv"])
def test_no_other_name_passes_for_a_split_of_refcoco(split):
    with pytest.raises(ValueError, match="train, val, testA, testB, got"):
        validate("refcoco", split)


def test_a_split_of_another_split_by_is_pointed_out():
    with pytest.raises(ValueError, match="'test' exists with split_by google"):
        validate("refcoco", "test", "unc")


@pytest.mark.parametrize(
    ("dataset", "split_by", "legal"),
    [
        ("refcoco", "umd", "unc, google"),
        ("refcoco+", "google", "unc"),
        ("refcocog", "unc", "umd, google"),
        ("shapes", "unc", "synthetic"),
        ("refcoco", "", "unc, google"),
    ],
)
def test_a_wrong_split_by_is_answered_with_the_legal_ones(dataset, split_by, legal):
    with pytest.raises(ValueError, match=f"one of {legal}, got '{split_by}'"):
        validate(dataset, "val", split_by)
