"""Shards: which images they take, and that their stores make the records of one run."""

from __future__ import annotations

import itertools
import random
import shutil

import pytest

from evaluation.records import read_records
from evaluation.shards import Shard
from hybridgl.errors import SettingError
from tests.evaluation.factories import ToyMethod
from tests.run_folders import content_of, summary_of

IMAGES = [70, 30, 50, 10]

# Which images.


@pytest.mark.parametrize("text", ["1/1", "2/8", "8/8", "9999/9999"])
def test_shard_is_read_from_its_text(text):
    index, total = map(int, text.split("/"))
    shard = Shard.parse(text)
    assert shard == Shard(index, total)
    assert str(shard) == text


@pytest.mark.parametrize(
    "text",
    [
        *("0/3", "4/3", "1/0", "0/0", "a/b", "", "1", "/", "1/", "/3", "-1/3", "1/-3", "1.5/3"),
        *("1/2/3", " 1/3", "1/3\n", "1 / 3", "1|3", "²/3", "1/99999"),
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(SettingError, match=r"Expected i/n with i from 1 to n, such as 2/8, "):
        Shard.parse(text)


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 9])
def test_every_image_is_in_one_shard_of_about_the_same_size(total):
    parts = [Shard(index, total).of(IMAGES) for index in range(1, total + 1)]
    assert sorted(itertools.chain(*parts)) == sorted(IMAGES)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for part in parts:
        assert part == [image_id for image_id in IMAGES if image_id in part]


def test_shard_takes_every_nth_image_in_the_order_of_the_split():
    assert Shard(1, 3).of(IMAGES) == [70, 10]
    assert Shard(2, 3).of(dict.fromkeys(IMAGES)) == [30]
    assert Shard(9, 9).of(IMAGES) == []


# Runs.

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """Folder of a run in one piece, by profile."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("reference", "corrected")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.run.draw_samples", lambda *_: None)
        for profile, folder in folders.items():
            toy.run(folder, "--profile", profile)
    return folders


@pytest.mark.parametrize(
    ("profile", "total"), [("reference", 2), ("reference", 3), ("reference", 5), ("corrected", 2)]
)
def test_shards_in_any_order_and_then_a_run_give_the_records_of_one_run(
    profile, total, toy, whole, tmp_path, monkeypatch
):
    indices = random.Random(total).sample(range(1, total + 1), total)
    for index in indices:
        printed = toy.run(tmp_path, "--profile", profile, "--shard", f"{index}/{total}")
        assert f"shard {index}/{total} is in {tmp_path / 'store'}/" in printed
        assert not (tmp_path / "run").exists()
    monkeypatch.setattr(ToyMethod, "score", None)
    toy.run(tmp_path, "--profile", profile)
    assert content_of(tmp_path) == content_of(whole[profile])
    for name in ("settings", "counts", "scores", "intervals", "breakdowns", "warnings"):
        assert summary_of(tmp_path)[name] == summary_of(whole[profile])[name]


def test_stores_of_shards_copied_over_one_another_give_the_records_of_one_run(
    toy, whole, tmp_path, monkeypatch
):
    for index in (3, 1, 2):
        toy.run(tmp_path / str(index), "--shard", f"{index}/3")
    for index in (2, 3, 1):
        shutil.copytree(tmp_path / str(index) / "store", tmp_path / "store", dirs_exist_ok=True)
    monkeypatch.setattr(ToyMethod, "score", None)
    toy.run(tmp_path)
    assert content_of(tmp_path) == content_of(whole["reference"])


@pytest.mark.parametrize("damage", ["killed", "flipped", "cut"])
def test_shard_that_was_killed_or_damaged_is_made_whole_by_running_it_again(
    damage, toy, whole, tmp_path, monkeypatch
):
    score = ToyMethod.score
    if damage == "killed":
        calls = itertools.count()

        def dying(self, *arguments):
            if next(calls):
                raise KeyboardInterrupt
            return score(self, *arguments)

        monkeypatch.setattr(ToyMethod, "score", dying)
        with pytest.raises(KeyboardInterrupt):
            toy.run(tmp_path, "--shard", "1/2")
        monkeypatch.setattr(ToyMethod, "score", score)
    else:
        toy.run(tmp_path, "--shard", "1/2")
        path = next((tmp_path / "store").rglob("scores/*/*.safetensors"))
        content = bytearray(path.read_bytes())
        content[-30] ^= 1
        path.write_bytes(content if damage == "flipped" else content[:-30])
    toy.run(tmp_path, "--shard", "1/2")
    toy.run(tmp_path, "--shard", "2/2")
    assert toy.prepare(tmp_path).evaluation.missing() == []
    toy.run(tmp_path)
    assert content_of(tmp_path) == content_of(whole["reference"])


def test_run_without_shards_makes_what_they_lack(toy, whole, tmp_path):
    toy.run(tmp_path, "--shard", "2/3")
    toy.run(tmp_path)
    assert summary_of(tmp_path)["store"]["found"]["scores"] == 1
    assert content_of(tmp_path) == content_of(whole["reference"])


def test_shard_of_other_settings_is_no_part_of_the_run(toy, whole, tmp_path):
    toy.run(tmp_path, "--shard", "1/2", "--sharpness", "2")
    toy.run(tmp_path, "--shard", "2/2")
    assert len(toy.prepare(tmp_path).evaluation.missing()) == 2
    toy.run(tmp_path)
    assert content_of(tmp_path) == content_of(whole["reference"])


def test_shard_of_another_late_setting_is(toy, tmp_path, monkeypatch):
    """What only choices read may change between the shards and the run that merges."""
    for index in (1, 2):
        toy.run(tmp_path, "--shard", f"{index}/2")
    monkeypatch.setattr(ToyMethod, "score", None)
    toy.run(tmp_path, "--most", "1")
    records = read_records(tmp_path / "run" / "records.jsonl")
    for record in records:
        assert record.predictions["first"].proposal == record.predictions["last"].proposal


def test_finished_run_and_shards_may_follow_each_other(toy, whole, tmp_path):
    shutil.copytree(whole["reference"], tmp_path, dirs_exist_ok=True)
    content = content_of(tmp_path)
    toy.run(tmp_path, "--shard", "1/2")
    assert content_of(tmp_path) == content
    assert "the records were there" in toy.run(tmp_path)
    assert content_of(tmp_path) == content


def test_run_after_shards_that_overwrite_writes_its_records_again(toy, whole, tmp_path):
    shutil.copytree(whole["reference"], tmp_path, dirs_exist_ok=True)
    content = content_of(tmp_path)
    for index in (1, 2):
        toy.run(tmp_path, "--shard", f"{index}/2", "--overwrite")
    assert "the records were there" not in toy.run(tmp_path)
    assert content_of(tmp_path) == content


def test_shard_of_a_machine_that_lacks_an_image_fills_in_the_others(toy, data_root, tmp_path):
    """The key of an image's result hashes its own file alone."""
    root = shutil.copytree(data_root, tmp_path / "data")
    given = ("--refer_data_root", root)
    this = toy.prepare(tmp_path, *given)
    first = next(iter(this.split.images))
    path = this.split.image_path(first)
    path.rename(tmp_path / "gone.jpg")
    for shard in ("1/2", "2/2"):
        toy.run(tmp_path, *given, "--shard", shard)
    (tmp_path / "gone.jpg").rename(path)
    assert toy.prepare(tmp_path, *given).evaluation.missing() == [first]
