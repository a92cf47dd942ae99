"""Runs from their settings to their folders: names, resuming, refusals, and what is written."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import shlex
import shutil
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import hybridgl_main
from evaluation.evaluate import Evaluation
from evaluation.published import parser_notes
from evaluation.run import RunConfig
from evaluation.samples import draw_samples
from hybridgl.config import KNOWS_SHAPES_ONLY
from hybridgl.devices import BatchSizes
from hybridgl.errors import DataError, SettingError
from hybridgl.masks import decode_rle
from hybridgl.metrics import PROTOCOLS
from hybridgl.store import Store
from hybridgl.weights.registry import Parser
from refer.refer import load_refer
from tests.evaluation.factories import MaskMethod, ToyMethod
from tests.refer_factories import HW, custom_coco, mini_refer
from tests.run_folders import content_of, records_of, summary_of

pytestmark = pytest.mark.usefixtures("without_figures")


def files_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """Folder of a finished run; read it only."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.run.draw_samples", lambda *_: None)
        toy.run(folder)
    return folder


@pytest.fixture
def again(finished, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(finished, tmp_path / "again")


# What a run leaves.


def test_run_writes_records_report_and_summary(finished):
    assert {path.name for path in (finished / "run").iterdir()} == {
        "records.jsonl",
        "report.md",
        "summary.json",
    }
    records, summary = records_of(finished), summary_of(finished)
    assert len(records) == summary["counts"]["sentences"] == 15
    assert (summary["counts"]["refs"], summary["counts"]["images"]) == (6, 3)
    assert summary["protocol"] == "zero-shot"
    assert list(summary["scores"]) == ["first", "last", "chance", "oracle"]
    ious = [record.iou("last") for record in records]
    assert summary["scores"]["last"]["mIoU"] == pytest.approx(100 * np.mean(ious))
    assert summary["scores"]["oracle"] == {"mIoU": 100}
    assert summary["store"] == {"found": {}, "made": {"manifests": 1, "scores": 3}}
    assert summary["settings"]["method"]["name"] == "toy"
    assert set(summary["settings"]["models"]["sha256"]) == {"clip", "parser"}
    (whole,), (_, parser) = summary["warnings"], summary["notes"]
    assert whole.startswith("Not the whole of refcoco val")
    assert parser.startswith("Sentences were read by en_tiny_shapes 1 under spaCy ")
    report = (finished / "run" / "report.md").read_text()
    assert whole in report
    assert parser in report


def test_run_says_when_how_by_which_code_and_where_it_was_made(finished):
    origin = summary_of(finished)["origin"]
    made = datetime.fromisoformat(origin["date"])
    assert timedelta() <= datetime.now(UTC) - made < timedelta(hours=3)
    assert origin["command"] == shlex.join(["python", *sys.orig_argv[1:]])
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", origin["commit"] or "0" * 40)
    assert f"{os.cpu_count()} cores of" in origin["machine"]
    assert summary_of(finished)["threads"] == torch.get_num_threads()
    page = (finished / "run" / "report.md").read_text()
    assert page.startswith(f"# toy on refcoco val\n\nMade on {origin['date']}")
    assert f"```\n{origin['command']}\n```" in page


def test_records_name_the_image_file_and_place_and_scores_of_the_prediction(finished, data_root):
    images = load_refer(data_root, "refcoco", "val", check_counts=False).images
    for record in records_of(finished):
        assert record.image_file == images[record.image_id].file_name
        for one in record.predictions.values():
            x, y, w, h = one.box
            assert (w + 1) * (h + 1) >= one.area > 0
            assert min(x, y) >= 0
            assert one.similarity == round(one.similarity, 4)
        assert record.predictions["first"].score == record.predictions["first"].similarity
        assert record.predictions["last"].score is None  # undefined


# Predicted masks.


def masks_of(folder):
    return json.loads((folder / "run" / "masks.json").read_text())


def decoded(result):
    size, counts = result["segmentation"]["size"], result["segmentation"]["counts"]
    return decode_rle([counts], tuple(size))[0]


def test_saved_masks_are_those_of_the_records_in_their_order(toy, finished, tmp_path):
    toy.run(tmp_path, "--save_masks")
    assert content_of(tmp_path) == content_of(finished)
    for record, result in zip(records_of(tmp_path), masks_of(tmp_path), strict=True):
        prediction = record.predictions["last"]
        named = [result[name] for name in ("image_id", "ref_id", "sent_id", "bbox", "area")]
        assert named == [
            *(record.image_id, record.ref_id, record.sent_id),
            *(prediction.box, prediction.area),
        ]
        assert result["score"] == prediction.similarity
        mask_HW = decoded(result)
        assert mask_HW.sum() == prediction.area
        x, y, w, h = prediction.box
        assert mask_HW[y : y + h + 1, x : x + w + 1].sum() == prediction.area


def test_saved_masks_of_a_method_without_proposals_are_its_own(toy, tmp_path):
    toy.run(tmp_path, "--method", "mask", "--save_masks")
    assert len(masks_of(tmp_path)) == 15
    for result in masks_of(tmp_path):
        mask_HW = decoded(result)
        assert mask_HW[: HW[0] // 2].all()
        assert not mask_HW[HW[0] // 2 :].any()
        assert result["score"] == 1


def test_saved_masks_serve_as_proposals(toy, tmp_path):
    toy.run(tmp_path, "--save_masks")
    toy.run(tmp_path / "again", "--proposals", f"coco:{tmp_path / 'run' / 'masks.json'}")
    numbers = Counter(result["image_id"] for result in masks_of(tmp_path))
    for record in records_of(tmp_path / "again"):
        assert record.num_proposals == numbers[record.image_id]


def test_masks_are_written_when_they_are_asked_for_later_and_made_again_when_damaged(
    toy, again, finished
):
    assert not (again / "run" / "masks.json").exists()
    toy.run(again, "--save_masks")
    masks = (again / "run" / "masks.json").read_bytes()
    assert summary_of(again)["store"] == {"found": {"scores": 3}, "made": {}}
    printed = toy.run(again, "--protocol", "lavt")
    assert "the records were there" in printed
    assert (again / "run" / "masks.json").read_bytes() == masks
    (again / "run" / "masks.json").write_bytes(masks[:-9])
    toy.run(again, "--save_masks")
    assert (again / "run" / "masks.json").read_bytes() == masks
    assert content_of(again) == content_of(finished)


def test_images_that_cannot_be_read_have_no_mask(toy, copied_root, tmp_path):
    split = load_refer(copied_root, "refcoco", "val", check_counts=False)
    split.image_path(next(iter(split.images))).unlink()
    toy.run(tmp_path, "--refer_data_root", copied_root, "--save_masks")
    errors = [record.image_error for record in records_of(tmp_path)]
    assert any(errors)
    assert len(masks_of(tmp_path)) == errors.count(False)


def test_second_run_finds_everything_and_gives_the_same_bytes(toy, again, finished):
    shutil.rmtree(again / "run")
    toy.run(again)
    assert content_of(again) == content_of(finished)
    assert summary_of(again)["store"] == {"found": {"scores": 3}, "made": {}}


def test_run_without_proposals_has_no_yardsticks(toy, tmp_path):
    printed = toy.run(tmp_path, "--method", "mask")
    assert "mIoU mask" in printed
    assert list(summary_of(tmp_path)["scores"]) == ["mask"]
    assert {record.num_proposals for record in records_of(tmp_path)} == {None}


def test_limit_takes_the_first_images(toy, finished, tmp_path):
    toy.run(tmp_path, "--limit", 2)
    part = "Not the whole of refcoco val: the first 2 of 3 images."
    assert part in summary_of(tmp_path)["warnings"]
    whole = {(r.ref_id, r.sent_id): r for r in records_of(finished)}
    records = records_of(tmp_path)
    assert len(records) == 10
    assert all(whole[record.ref_id, record.sent_id] == record for record in records)


def test_setting_line_names_what_was_changed(toy, tmp_path):
    toy.run(tmp_path, "--most", 2, "--profile", "corrected")
    setting = summary_of(tmp_path)["setting"]
    assert setting == (
        "toy, corrected profile, CLIP clip.npz, proposals of ground truth, float32, most 2, "
        "weights tiny, protocol zero-shot"
    )


def test_same_files_in_other_places_are_the_same_settings(toy, again, data_root, tmp_path):
    root = shutil.copytree(data_root, tmp_path / "moved")
    weights = toy.prepare(tmp_path / "unused").models.weights
    clip = shutil.copy(weights.clip_weights, tmp_path)
    printed = toy.run(again, "--refer_data_root", root, "--clip_weights", clip)
    assert "the records were there" in printed


# The parser.


def parser_lines(folder):
    return [line for line in summary_of(folder)["notes"] if "Sentences were read by" in line]


def installed(monkeypatch, **versions):
    """Have some versions of packages, and no others."""
    monkeypatch.setattr("hybridgl.weights.registry._version", versions.get)


def test_parser_that_read_the_sentences_is_recorded_wherever_records_are_made(
    toy, tmp_path, monkeypatch
):
    installed(monkeypatch, spacy="3.8.1")
    toy.run(tmp_path, "--shard", "1/2")
    installed(monkeypatch, spacy="3.7.6")
    toy.run(tmp_path, "--shard", "2/2")
    installed(monkeypatch)
    toy.run(tmp_path)
    recorded = summary_of(tmp_path)["parsers"]
    tiny = {"model": "en_tiny_shapes", "model_version": "1"}
    assert recorded == [
        {"parser": {**tiny, "spacy_version": "3.8.1"}, "images": 2},
        {"parser": {**tiny, "spacy_version": "3.7.6"}, "images": 1},
    ]
    warnings = parser_lines(tmp_path)
    released = "in HybridGL's released program by en_core_web_lg 3.7.1 under spaCy 3.7.6."
    assert [released in line for line in warnings] == [True, True]
    assert "by en_tiny_shapes 1 under spaCy 3.8.1," in warnings[0]
    toy.run(tmp_path, "--protocol", "lisa")
    assert summary_of(tmp_path)["parsers"] == recorded
    assert parser_lines(tmp_path) == warnings


def test_released_parser_needs_no_note(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hybridgl.weights.registry.RELEASED_PARSER", Parser("en_tiny_shapes", "1", "3.7.6")
    )
    installed(monkeypatch, spacy="3.7.2")
    toy.run(tmp_path)
    assert parser_lines(tmp_path) == []
    assert summary_of(tmp_path)["parsers"][0]["images"] == 3


def test_parser_of_data_without_published_numbers_needs_no_note():
    other = Parser("en_core_web_sm", "3.8.0", "3.8.1")
    assert parser_notes("shapes", [other]) == parser_notes("birds", [other]) == []
    for dataset in ("refcoco", "refcoco+", "refcocog", "phrasecut"):
        assert len(parser_notes(dataset, [other])) == 1


def test_method_without_a_parser_records_none(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(MaskMethod, "models_needed", ("clip",))
    toy.run(tmp_path, "--method", "mask")
    assert summary_of(tmp_path)["parsers"] == parser_lines(tmp_path) == []


def test_activation_of_clip_is_recorded_and_that_of_an_unknown_file_warned_of(toy, tmp_path):
    weights = toy.prepare(tmp_path / "unused").models.weights
    own = shutil.copy(weights.clip_weights, tmp_path / "own.npz")
    printed = toy.run(tmp_path, "--clip_weights", own)
    (line,) = [line for line in summary_of(tmp_path)["warnings"] if "known activation" in line]
    assert f"note: {line}" in printed
    assert summary_of(tmp_path)["clip_activation"] == "quickgelu"
    toy.run(tmp_path, "--clip_weights", own, "--clip_activation", "gelu", "--overwrite")
    summary = summary_of(tmp_path)
    assert not any("activation" in line for line in summary["warnings"])
    assert summary["clip_activation"] == "gelu"
    assert summary["settings"]["models"]["numerics"] == {"clip": "torch.float32 gelu"}


# Finished and interrupted runs.


def test_finished_run_is_only_scored_again(toy, again, monkeypatch):
    records, before = content_of(again), summary_of(again)
    shutil.rmtree(again / "store")
    monkeypatch.setattr(ToyMethod, "score", None)
    monkeypatch.setattr(ToyMethod, "choose", None)
    printed = toy.run(again, "--protocol", "lisa")
    assert "the records were there, and are scored again" in printed
    after = summary_of(again)
    assert content_of(again) == records
    assert list(after["scores"]["last"]) == ["cIoU", "gIoU"]
    assert (after["store"], after["seconds"]) == (before["store"], before["seconds"])
    assert not (again / "store").exists()


def test_finished_records_are_those_of_the_very_same_run(toy, again):
    assert toy.prepare(again).finished_records() == records_of(again)
    assert toy.prepare(again, "--protocol", "lavt").finished_records() == records_of(again)
    assert toy.prepare(again, "--most", 1).finished_records() is None
    assert toy.prepare(again / "elsewhere").finished_records() is None


@pytest.mark.parametrize("lost", ["records.jsonl", "summary.json"])
def test_run_without_one_of_its_files_is_made_again(lost, toy, again, finished):
    (again / "run" / lost).unlink()
    assert toy.prepare(again).finished_records() is None
    toy.run(again)
    assert content_of(again) == content_of(finished)
    assert summary_of(again)["scores"] == summary_of(finished)["scores"]


@pytest.mark.parametrize("damage", ["changed", "cut", "emptied"])
def test_changed_records_are_made_again(damage, toy, again, finished):
    path, content = again / "run" / "records.jsonl", content_of(finished)
    changed = content.replace(b'"truncated": false', b'"truncated": true', 1)
    path.write_bytes({"changed": changed, "cut": content[:-40], "emptied": b""}[damage])
    toy.run(again)
    assert content_of(again) == content


@pytest.mark.parametrize(
    "stopped_at",
    [
        *("load_split", "Evaluation.missing", "write_manifest", "Evaluation.records"),
        *("write_records", "draw_samples", "atomic_write_bytes", "write_summary"),
    ],
)
def test_interrupted_anywhere_the_next_run_gives_the_same_records(
    stopped_at, toy, finished, tmp_path, monkeypatch
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    owner, _, name = stopped_at.rpartition(".")
    with monkeypatch.context() as patch:
        if owner:
            patch.setattr(Evaluation, name, stop)
        else:
            patch.setattr(f"evaluation.run.{name}", stop)
        with pytest.raises(KeyboardInterrupt):
            toy.run(tmp_path)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not list(tmp_path.rglob("*.partial"))
    toy.run(tmp_path)
    assert content_of(tmp_path) == content_of(finished)
    assert summary_of(tmp_path)["scores"] == summary_of(finished)["scores"]


def test_overwriting_is_interrupted_without_a_summary_of_other_records(toy, again, monkeypatch):
    """A summary vouches for what lies beside it."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("evaluation.run.write_records", stop)
        with pytest.raises(KeyboardInterrupt):
            toy.run(again, "--overwrite")
    assert not (again / "run" / "summary.json").exists()


def test_overwrite_makes_everything_again(toy, again, finished):
    toy.run(again, "--overwrite")
    assert summary_of(again)["store"]["found"] == {}
    assert summary_of(again)["store"]["made"]["scores"] == 3
    assert content_of(again) == content_of(finished)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--most", 1), "method"),
        (("--profile", "corrected"), "method, profile"),
        (("--limit", 1), "limit"),
        (("--spacy_model", "copied"), "models"),
    ],
    ids=["method", "profile", "limit", "models"],
)
def test_output_folder_of_other_settings_is_refused(given, named, toy, again):
    if given[0] == "--spacy_model":
        weights = toy.prepare(again / "unused").models.weights
        folder = shutil.copytree(weights.spacy_model, again / "copied")
        (folder / "more").write_text("content")
        given = ("--spacy_model", folder)
    before = files_of(again)
    with pytest.raises(FileExistsError) as refusal:
        toy.run(again, *given)
    message = str(refusal.value)
    assert message.startswith("Expected an empty folder or a run of the same settings in ")
    assert f"got a run with other {named};" in message
    assert "--overwrite" in message
    assert files_of(again) == before
    toy.run(again, *given, "--overwrite")


def test_folder_refuses_a_shard_of_other_settings_before_any_work(toy, again):
    before = files_of(again)
    with pytest.raises(FileExistsError, match="other method"):
        toy.run(again, "--shard", "1/2", "--most", 1)
    assert files_of(again) == before


def test_nothing_is_written_before_a_run_is_executed(toy, tmp_path):
    this = toy.prepare(tmp_path)
    assert this.settings["dataset"] == "refcoco"
    assert list(tmp_path.iterdir()) == []


def test_entries_of_earlier_versions_are_named(toy, tmp_path, caplog):
    old = tmp_path / "store" / "features" / "ab"
    old.mkdir(parents=True)
    (old / "ab.safetensors").touch()
    toy.prepare(tmp_path)
    assert "features" in caplog.text
    assert Store(tmp_path / "store").warnings()[0] in caplog.text


# Images that cannot be read, and images without proposals.


@pytest.fixture
def copied_root(data_root, tmp_path):
    return shutil.copytree(data_root, tmp_path / "data")


def test_missing_image_is_counted_named_and_scored_0(toy, finished, copied_root, tmp_path):
    given = ("--refer_data_root", copied_root)
    split = toy.prepare(tmp_path, *given).split
    second = list(split.images)[1]
    split.image_path(second).unlink()
    printed = toy.run(tmp_path, *given)
    records, summary = records_of(tmp_path), summary_of(tmp_path)
    gone = [record for record in records if record.image_error]
    assert {record.image_id for record in gone} == {second}
    assert (len(records), len(gone), summary["counts"]["images_missing"]) == (15, 5, 1)
    kept = [record for record in records_of(finished) if record.image_id != second]
    assert [record for record in records if not record.image_error] == kept
    (line,) = [line for line in summary["warnings"] if split.images[second].file_name in line]
    assert f"note: {line}" in printed
    assert summary["counts"]["left_out"] == 0


def test_run_with_an_image_that_has_come_back_is_no_finished_one(toy, copied_root, tmp_path):
    given = ("--refer_data_root", copied_root)
    split = toy.prepare(tmp_path, *given).split
    path = split.image_path(next(iter(split.images)))
    path.rename(tmp_path / "gone.jpg")
    toy.run(tmp_path, *given)
    (tmp_path / "gone.jpg").rename(path)
    assert toy.prepare(tmp_path, *given).finished_records() is None
    toy.run(tmp_path, *given)
    assert not any(record.image_error for record in records_of(tmp_path))


def test_image_that_proves_corrupt_is_counted_and_named(toy, copied_root, tmp_path):
    given = ("--refer_data_root", copied_root)
    split = toy.prepare(tmp_path, *given).split
    path = split.image_path(list(split.images)[1])
    content = path.read_bytes()
    # Its head and its end are whole, so that only decoding finds it.
    path.write_bytes(content[:400] + bytes(len(content) - 600) + content[-200:])
    found = toy.prepare(tmp_path, *given).split.image_errors.unreadable
    printed = toy.run(tmp_path, *given)
    summary = summary_of(tmp_path)
    assert summary["counts"]["images_corrupt"] == 1
    assert sum(record.image_error for record in records_of(tmp_path)) == 5
    (line,) = [line for line in summary["warnings"] if path.name in line]
    assert f"note: {line}" in printed
    assert found or "cannot be decoded" in line
    # There is nothing to compute, so no model is asked for.
    shutil.rmtree(tmp_path / "run")
    toy.run(tmp_path, *given, "--clip_weights", tmp_path / "clip.npz")
    assert summary_of(tmp_path)["scores"] == summary["scores"]


def test_image_of_12_bits_is_counted_and_named_with_what_scales_it(toy, copied_root, tmp_path):
    given = ("--refer_data_root", copied_root)
    split = toy.prepare(tmp_path, *given).split
    path = split.image_path(list(split.images)[1])
    values_HW = np.random.default_rng(0).integers(0, 2**12, HW).astype(np.uint16)
    Image.fromarray(values_HW).save(path, "PNG")
    toy.run(tmp_path, *given)
    summary = summary_of(tmp_path)
    assert summary["counts"]["images_corrupt"] == 1
    assert sum(record.image_error for record in records_of(tmp_path)) == 5
    (line,) = [line for line in summary["warnings"] if path.name in line]
    assert "need only 12 of them" in line
    assert "divide them by 16" in line


@pytest.mark.parametrize("profile", ["reference", "corrected"])
def test_quirk_8_leaves_out_images_without_proposals_alone(profile, toy, data_root, tmp_path):
    split = toy.prepare(tmp_path / "unused").split
    first, empty, _ = split.images
    polygon = [[8, 16, 32, 16, 32, 48, 8, 48]]
    rows = [{"image_id": i, "segmentation": polygon} for i in split.images if i != empty]
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(rows))
    root = shutil.copytree(data_root, tmp_path / "data")
    lost = root / split.image_path(first).relative_to(data_root)
    lost.unlink()
    given = ["--profile", profile, "--proposals", f"coco:{path}", "--refer_data_root", root]
    printed = toy.run(tmp_path, *given)
    records, summary = records_of(tmp_path), summary_of(tmp_path)
    skipped = profile == "reference"
    # The image that cannot be read is an error of the data, and stays.
    kept = [r for r in records if r.num_proposals or r.image_error or not skipped]
    assert (len(records), len(kept)) == (15, 10 if skipped else 15)
    ious = [record.iou("last") for record in kept]
    assert summary["scores"]["last"]["mIoU"] == pytest.approx(100 * np.mean(ious))
    assert summary["counts"]["without_proposals"] == 10
    assert summary["counts"]["left_out"] == 15 - len(kept)
    assert ("5 of them left out (Q8)" in printed) == skipped
    assert summary["breakdowns"]["length"]["all"]["n"] == len(kept)


def test_images_without_an_entry_in_the_file_are_named(toy, tmp_path):
    split = toy.prepare(tmp_path / "unused").split
    path = tmp_path / "masks.json"
    mask = {"size": list(HW), "counts": [0, HW[0] * HW[1]]}
    path.write_text(json.dumps([{"image_id": next(iter(split.images)), "segmentation": mask}]))
    toy.run(tmp_path, "--proposals", f"coco:{path}")
    assert any("2 of 3 images have no entry" in line for line in summary_of(tmp_path)["warnings"])
    assert summary_of(tmp_path)["settings"]["proposals"]["source"] == "coco"


# Data that is refused before any work.


def refused(toy, folder, error, *given):
    """The message with which a run is refused, before anything is written."""
    before = files_of(folder)
    with pytest.raises(error) as refusal:
        toy.run(folder, *given)
    assert files_of(folder) == before
    assert not (folder / "run").exists()
    return str(refusal.value)


@pytest.fixture
def broken_root(tmp_path):
    """Data whose last ref of the split has a broken mask, the first one that covers no pixel."""
    data = mini_refer()
    referred = [ref["ann_id"] for ref in data.refs if ref["split"] == "val"]
    masks = {referred[0]: [[1, 1, 1, 1, 1, 1]], referred[-1]: [[1, 2, 3, 4, 5]]}
    for annotation in data.instances["annotations"]:
        annotation["segmentation"] = masks.get(annotation["id"], annotation["segmentation"])
    data.write(tmp_path / "data")
    return tmp_path / "data"


def test_broken_ground_truth_is_refused_strictly_before_any_work(toy, broken_root, tmp_path):
    given = ("--refer_data_root", broken_root, "--proposals", "sam", "--strict")
    message = refused(toy, tmp_path, DataError, *given)
    assert re.match(r"Annotation \d+ of image COCO_train2014_\d+\.jpg: Expected a polygon", message)


def test_samples_without_ground_truth_stay_at_0_counted_and_named(toy, broken_root, tmp_path):
    ids = list(toy.prepare(tmp_path / "unused").split.images)
    path = tmp_path / "masks.json"
    path.write_text(json.dumps([{"image_id": i, "segmentation": FULL} for i in ids]))
    toy.run(tmp_path, "--refer_data_root", broken_root, "--proposals", f"coco:{path}")
    records, summary = records_of(tmp_path), summary_of(tmp_path)
    assert len(records) == 15
    empty = {record.ref_id for record in records if record.gt_area == 0}
    assert len(empty) == 2
    assert {record.iou("last") for record in records if record.ref_id in empty} == {0}
    assert summary["counts"]["refs_without_mask"] == 1
    assert summary["counts"]["refs_without_pixels"] == 1
    (line,) = [line for line in summary["warnings"] if "have a broken mask" in line]
    assert "Expected a polygon" in line
    (line,) = [line for line in summary["notes"] if "covers no pixel" in line]
    assert line.startswith("1 of 6 refs have a ground truth that covers no pixel")
    assert line in (tmp_path / "run" / "report.md").read_text()
    assert summary["settings"]["lenient"]


def test_strictness_changes_neither_name_nor_settings_of_a_run(toy, tmp_path):
    plain, strict = toy.prepare(tmp_path / "a"), toy.prepare(tmp_path / "a", "--strict")
    assert plain.settings == strict.settings
    assert config_of("--strict").changed == {}


def test_missing_proposal_file_is_refused_before_the_data_is_read(toy, tmp_path):
    given = ("--refer_data_root", tmp_path / "data", "--proposals", f"coco:{tmp_path}/gone.json")
    assert f"{tmp_path}/gone.json" in refused(toy, tmp_path, DataError, *given)


FULL = {"size": list(HW), "counts": [0, HW[0] * HW[1]]}
REFUSED = {
    "other images": ([("cat.jpg", FULL), (7, FULL)], "entry 0 has image_id 'cat.jpg'"),
    "wrong size": ([(0, FULL), (1, {"size": [96, 64], "counts": [6144]})], "Entry 1 of the masks "),
    "broken RLE": ([(0, FULL), (1, FULL | {"counts": "0"})], "Entry 1 of the masks "),
    "unreadable RLE": ([(0, FULL), (1, FULL | {"counts": "~~"})], "Entry 1 of the masks "),
    "boxes": ([(0, FULL), (1, None)], "Entry 1 of the masks "),
}


@pytest.mark.parametrize(("rows", "said"), REFUSED.values(), ids=REFUSED)
def test_unusable_proposal_file_is_refused_before_any_work(rows, said, toy, tmp_path):
    ids = list(toy.prepare(tmp_path / "unused").split.images)
    content = []
    for image, segmentation in rows:
        row = {"image_id": ids[image] if image in (0, 1) else image, "score": 1.0}
        masked = {"segmentation": segmentation} if segmentation else {"bbox": [1, 1, 9, 9]}
        content.append(row | masked)
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(content))
    message = refused(toy, tmp_path, DataError, "--proposals", f"coco:{path}", "--strict")
    assert str(path) in message
    assert said in message


# Protocols.


@pytest.fixture(scope="module")
def by_protocol(toy, tmp_path_factory):
    """Summary and report of every protocol, all run into one folder, which keeps its records."""
    folder, found = tmp_path_factory.mktemp("protocols"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.run.draw_samples", lambda *_: None)
        for name in PROTOCOLS:
            toy.run(folder, "--protocol", name)
            report = (folder / "run" / "report.md").read_text()
            found[name] = SimpleNamespace(
                report=report, content=content_of(folder), **summary_of(folder)
            )
    return found


def test_protocol_changes_no_record_and_no_setting(by_protocol, finished):
    for name, found in by_protocol.items():
        assert found.content == content_of(finished)
        assert found.protocol == name
        assert f"protocol {name}" in found.report
        assert found.settings == by_protocol["zero-shot"].settings


def test_protocols_have_names_and_values_of_their_own(by_protocol):
    precisions = ["P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"]
    assert {name: list(found.scores["last"]) for name, found in by_protocol.items()} == {
        "zero-shot": ["oIoU", "mIoU", *precisions],
        "lavt": ["oIoU", "mIoU", *precisions],
        "lisa": ["cIoU", "gIoU"],
        "phrasecut": ["oIoU", "mIoU", *precisions],
    }
    zero_shot, lisa = by_protocol["zero-shot"].scores, by_protocol["lisa"].scores
    assert by_protocol["phrasecut"].scores == zero_shot
    assert lisa["last"]["gIoU"] == zero_shot["last"]["mIoU"]
    assert lisa["last"]["cIoU"] == zero_shot["last"]["oIoU"]
    assert lisa["oracle"] == {"gIoU": zero_shot["oracle"]["mIoU"]}


def slow_scores(records, variant, protocol):
    if protocol == "lavt":
        pairs = [(r.predictions[variant].intersection_480, r.union_480(variant)) for r in records]
    else:
        pairs = [(r.predictions[variant].intersection, r.union(variant)) for r in records]
    ious = [intersection / union for intersection, union in pairs]
    scores = [sum(i for i, _ in pairs) / sum(u for _, u in pairs), sum(ious) / len(ious)]
    for limit in () if protocol == "lisa" else (0.5, 0.6, 0.7, 0.8, 0.9):
        hits = [iou >= limit if protocol == "lavt" else iou > limit for iou in ious]
        scores.append(sum(hits) / len(hits))
    return [100 * score for score in scores]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_equal_a_loop_and_lie_in_their_intervals(protocol, by_protocol, finished):
    found, records = by_protocol[protocol], records_of(finished)
    for variant in ("first", "last"):
        scores, intervals = found.scores[variant], found.intervals[variant]
        assert list(scores.values()) == pytest.approx(slow_scores(records, variant, protocol))
        assert intervals.keys() == scores.keys()
        for name, (low, high) in intervals.items():
            assert 0 <= low <= scores[name] <= high <= 100


# Figures.


def test_best_worst_and_random_predictions_are_drawn(toy, tmp_path, monkeypatch):
    monkeypatch.undo()
    drawn, gallery = [], []

    def draw(image_HW3, proposals, prediction, attention_HW, **named):
        assert image_HW3.shape == (*HW, 3)
        assert len(proposals) == 2
        assert attention_HW is None
        drawn.append((named["title"], prediction.proposals["last"], named["gt_mask_HW"].sum()))
        return b"a figure"

    monkeypatch.setattr("evaluation.samples.draw_prediction", draw)
    monkeypatch.setattr(
        "evaluation.samples.draw_gallery", lambda items: gallery.extend(items) or b"a gallery"
    )
    figures = tmp_path / "run" / "figures"
    figures.mkdir(parents=True)
    for name in ("best-9.png", "mine.png"):
        (figures / name).touch()
    toy.run(tmp_path)
    sorts = [f"{sort}-{rank}.png" for sort in ("best", "random", "worst") for rank in (1, 2, 3)]
    assert sorted(path.name for path in figures.iterdir()) == sorted(
        ["gallery.png", "mine.png", *sorts]
    )
    assert (figures / "gallery.png").read_bytes() == b"a gallery"
    page = (tmp_path / "run" / "report.md").read_text()
    linked = re.findall(r"!\[([\w-]+)\]\(figures/([\w.-]+)\)", page)
    assert linked == [(name.removesuffix(".png"), name) for name in ("gallery.png", *sorts)]
    assert len(gallery) == 8
    # Drawn is what was recorded, under the limit that it was made with (Q5).
    recorded = {
        f"ref {r.ref_id}, sentence {r.sent_id}: {r.sentence!r}": (
            r.predictions["last"].proposal,
            r.gt_area,
        )
        for r in records_of(tmp_path)
    }
    assert all(recorded[title] == tuple(others) for title, *others in drawn)
    worst = [title for title, *_ in drawn[:3]]
    ious = sorted(
        (r.iou("last"), f"ref {r.ref_id}, sentence {r.sent_id}: {r.sentence!r}")
        for r in records_of(tmp_path)
    )
    assert {iou for iou, title in ious if title in worst} == {iou for iou, _ in ious[:3]}


def test_figures_follow_the_limit_of_their_record(toy, tmp_path, monkeypatch):
    limits = []

    def draw(evaluation, made, folder):
        limits.extend(limit for _, limit in made)
        for record, limit in made:
            ref = next(ref for ref in evaluation.split.refs if ref.ref_id == record.ref_id)
            prediction = evaluation.predict(ref, record.sent_id, limit)
            assert prediction.proposals["last"] == record.predictions["last"].proposal

    monkeypatch.setattr("evaluation.run.draw_samples", draw)
    toy.run(tmp_path)
    assert limits == [2] * 15


def test_figures_of_a_method_without_proposals_show_its_masks(toy, tmp_path, monkeypatch):
    monkeypatch.undo()
    gallery = []
    monkeypatch.setattr("evaluation.samples.draw_prediction", lambda *_, **__: b"a figure")
    monkeypatch.setattr("evaluation.samples.draw_gallery", lambda i: gallery.extend(i) or b"x")
    toy.run(tmp_path, "--method", "mask")
    assert all(item.mask_HW[: HW[0] // 2].all() for item in gallery)


def test_run_whose_images_all_lack_proposals_draws_no_gallery(toy, tmp_path):
    this = toy.prepare(tmp_path)
    made = [
        (record, limit) for record, limit in this.evaluation.records() if not record.image_error
    ]
    draw_samples(this.evaluation, [], tmp_path / "figures")
    assert not (tmp_path / "figures" / "gallery.png").exists()
    assert made


# Settings and names of folders.


def parsed(*given):
    parser = hybridgl_main.build_parser()
    return parser.parse_args([*map(str, given)])


def config_of(*given):
    return RunConfig.from_arguments(parsed(*given), hybridgl_main.METHODS)


def name_of(*given):
    return config_of(*given).folder.name


VALUES = {
    "dataset": ["refcoco", "refcoco+", "refcocog", "phrasecut"],
    "split": ["train"],
    "refer_data_root": ["elsewhere", "else/where"],
    "limit": ["1", "12"],
    "weights": ["paper"],
    "clip_model": ["ViT-B-32", "RN50"],
    "clip_weights": ["weights/mine.pt", "weights/other.pt", "elsewhere/mine.pt"],
    "clip_activation": ["gelu", "quickgelu"],
    "sam_type": ["vit_b", "tiny"],
    "sam_checkpoint": ["weights/sam-mine.pth"],
    "sam_settings": ["phrasecut", "refcoco"],
    "spacy_model": ["en_core_web_sm"],
    "profile": ["corrected"],
    "dtype": ["bfloat16"],
    "tf32": [""],
    "compile": [""],
    "method": ["global_local"],
    "proposals": ["gt", "coco:a/masks.json", "coco:gt.json", "coco:a-masks.json"],
    "fusion_mode": ["L2G", "both", "token_masking", "attn_masking", "crop"],
    "masking_block": ["8", "10"],
    "sentence_weight": ["0", "1"],
    "without": ["position", "coherence", "relationship", "coherence position"],
    "alpha": ["0", "0.5", "0.6000001"],
    "num_candidates": ["1", "6"],
    "num_context_masks": ["3", "12", "1"],
    "coherence_weights": ["1 1.95 1.5", "1.8 1 1.5", "1.8 1.95 1"],
}
"""Values other than the default, of every argument that decides the records."""

ELSEWHERE = {
    "config": "a file of the others",
    "image_root": "of custom datasets, see test_folders_of_images_are_part_of_a_runs_name",
    "strict": "refuses data, and changes no record",
    "threads": "how, not what",
    "apply_exif": "of custom datasets, see tests/refer/test_image_errors.py",
    "mixing_weight": "of the method global_local, see below",
    "crop_box": "of the method global_local, see below",
    "split_by": "in the name of the split, see below",
    "device": "differs from the default by the machine",
    "protocol": "scores the same records",
    "shard": "fills the store alone",
    "output": "the folder itself",
    "store": "where, not what",
    "overwrite": "how, not what",
    "keep_tokens": "how, not what",
    "save_masks": "what is written beside the records",
}


def test_every_argument_is_known_to_decide_the_records_or_not_to():
    assert vars(parsed()).keys() == VALUES.keys() | ELSEWHERE.keys()


def test_no_two_settings_share_a_folder():
    given_by_name = {name_of(): ["(none)"]}
    settings = [(f"--{o}", *value.split()) for o, values in VALUES.items() for value in values]
    settings += [
        ("--method", "global_local", "--mixing_weight", weight) for weight in ("0.5", "0.25")
    ]
    settings += [("--method", "global_local", "--crop_box", "freesolo")]
    settings += [("--alpha", "0", "--num_candidates", "1"), ("--limit", "1", "--alpha", "0.5")]
    for given in settings:
        given_by_name.setdefault(name_of(*given), []).append(" ".join(given))
    same = {name: given for name, given in given_by_name.items() if len(given) > 1}
    assert same == {}


def test_folder_names_by_hand():
    assert name_of() == "shapes-val-G2L-reference"
    assert name_of("--fusion_mode", "L2G") == "shapes-val-L2G-reference"
    google = ("--dataset", "refcocog", "--split_by", "google")
    assert name_of(*google) == "refcocog-google-val-G2L-reference"
    baseline = ("--method", "global_local", "--profile", "corrected")
    assert name_of(*baseline) == "shapes-val-global_local-corrected"
    changed = name_of(*google, "--limit", 5)
    assert changed.startswith("refcocog-google-val-G2L-reference-")
    assert len(changed) == len("refcocog-google-val-G2L-reference-") + 8
    assert config_of().folder.parent == Path("runs")
    assert config_of("--output", "a/b", "--alpha", 0).folder == Path("a/b")


@pytest.mark.parametrize(
    "given",
    [
        ["--protocol", "lavt"],
        ["--convention", "lavt"],
        ["--shard", "2/3"],
        ["--store", "elsewhere"],
        ["--overwrite"],
        ["--keep_tokens"],
        ["--split", "val"],
        ["--fusion_mode", "G2L"],
        ["--alpha", "0.60"],
        ["--num_candidates", "3"],
        ["--num_partners", "6"],
        ["--proposals", "sam"],
        ["--coherence_weights", "1.8", "1.95", "1.5"],
        ["--weights", "tiny"],
        ["--sam_settings", "shapes"],
        ["--device", "auto"],
    ],
    ids=lambda given: " ".join(given),
)
def test_what_changes_no_record_or_is_the_default_changes_no_name(given):
    assert name_of(*given) == name_of()
    assert config_of(*given).changed == {}


def test_folders_of_images_are_part_of_a_runs_name(tmp_path):
    path = tmp_path / "birds.json"
    path.write_text(json.dumps(custom_coco()))
    given = ("--dataset", path, "--weights", "tiny")
    roots = ("--image_root", "a", "--image_root", "b", "c")
    assert config_of(*given, *roots).changed["image_root"] == ["a", "b", "c"]
    assert name_of(*given) != name_of(*given, *roots) != name_of(*given, "--image_root", "a")


def test_defaults_of_a_dataset_are_no_changed_settings():
    photographs = ("--dataset", "refcocog", "--weights", "paper", "--clip_model", "ViT-B-16")
    assert name_of(*photographs) == name_of("--dataset", "refcocog")
    baseline = ("--dataset", "refcocog", "--method", "global_local")
    assert name_of(*baseline, "--mixing_weight", "0.85") == name_of(*baseline)
    assert name_of(*baseline, "--mixing_weight", "0.95") != name_of(*baseline)


def test_published_spelling_of_both_is_the_same_mode():
    assert config_of("--fusion_mode", "G2L&L2G").method == config_of("--fusion_mode", "both").method


def test_former_names_of_flags_set_the_same_settings():
    assert config_of("--num_partners", 4).method == config_of("--num_context_masks", 4).method
    assert config_of("--convention", "lisa").choice.protocol == "lisa"
    given = ("--dataset", "refcocog", "--splitBy", "google")
    assert config_of(*given).data.split_by == "google"


@pytest.mark.parametrize(
    ("dataset", "weight"),
    [("shapes", 0.95), ("refcoco", 0.95), ("refcoco+", 0.95), ("refcocog", 0.85)],
)
def test_mixing_weight_is_that_of_the_dataset(dataset, weight):
    given = ("--dataset", dataset, "--method", "global_local")
    assert config_of(*given).method.mixing_weight == weight
    assert config_of(*given, "--mixing_weight", 0.5).method.mixing_weight == 0.5


def test_settings_of_sam_are_those_of_the_dataset():
    assert config_of().models.proposals.min_mask_region_area == 100
    assert config_of("--dataset", "refcoco").models.proposals.points_per_side == 8
    assert config_of("--dataset", "phrasecut").models.proposals.points_per_side == 64


OUT_OF_RANGE = [
    ("alpha", "-0.01"),
    ("alpha", "1.01"),
    ("alpha", "nan"),
    ("sentence_weight", "-1"),
    ("sentence_weight", "2"),
    ("masking_block", "-1"),
    ("num_candidates", "0"),
    ("num_context_masks", "0"),
    ("num_context_masks", "-3"),
    ("coherence_weights", "2.1 1 1"),
    ("coherence_weights", "1 -0.1 1"),
    ("coherence_weights", "1 1 inf"),
    ("mixing_weight", "1.5"),
    ("mixing_weight", "nan"),
    ("mixing_weight", "-0.1"),
    ("limit", "0"),
]


@pytest.mark.parametrize(("setting", "value"), OUT_OF_RANGE)
def test_value_out_of_range_is_refused_by_name(setting, value):
    for method in hybridgl_main.METHODS:
        with pytest.raises(SettingError, match=f"Expected {setting} .*, got .*; give a number"):
            config_of("--method", method, f"--{setting}", *value.split())


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("hybridgl", ["--mixing_weight", "0.5"]),
        ("global_local", ["--alpha", "0.5", "--without", "position"]),
        ("global_local", ["--fusion_mode", "L2G"]),
        ("global_local", ["--num_candidates", "5", "--num_context_masks", "5"]),
        ("global_local", ["--coherence_weights", "1", "1", "1"]),
    ],
)
def test_setting_that_the_method_does_not_read_is_refused_by_name(method, given):
    with pytest.raises(SettingError) as refusal:
        config_of("--method", method, *given)
    for word in (method, *(word for word in given if word.startswith("--"))):
        assert word in str(refusal.value)


@pytest.mark.parametrize("proposals", ["SAM", "coco", "file.json", "gt:", "", "selective-search"])
def test_other_sources_of_proposals_are_refused(proposals, capsys):
    with pytest.raises(SystemExit):
        parsed("--proposals", proposals)
    assert f"xpected sam, coco:FILE or gt, got {proposals!r}" in capsys.readouterr().err


def test_arguments_need_no_parser_of_the_program(toy, tmp_path):
    """Whoever builds a run from code gets the same settings as the program."""
    arguments = argparse.Namespace(
        dataset="shapes", method="hybridgl", proposals="sam", protocol="zero-shot"
    )
    plain = RunConfig.from_arguments(arguments, hybridgl_main.METHODS)
    assert plain == config_of()
    assert pickle.loads(pickle.dumps(plain)) == plain


def test_summary_tells_the_batch_sizes_and_a_note_those_that_differ(toy, tmp_path):
    this = toy.prepare(tmp_path)
    first = min(this.split.images)
    this.models.batches.sizes = BatchSizes(2, 16, 1)
    list(this.evaluation.score_images([first]))
    usual = {"sizes": {"masks": 2, "points": 16, "images": 1}, "images": 3}
    toy.run(tmp_path)
    assert summary_of(tmp_path)["batch_sizes"] == [usual]
    assert summary_of(tmp_path)["notes"] == [KNOWS_SHAPES_ONLY, *parser_lines(tmp_path)]
    toy.run(tmp_path, "--protocol", "lavt")
    assert summary_of(tmp_path)["batch_sizes"] == [usual]

    toy.run(tmp_path, "--overwrite")
    this = toy.prepare(tmp_path, "--overwrite")
    this.models.batches.sizes = BatchSizes(2, 16, 1)
    next(iter(this.evaluation.score_images([first])))
    (tmp_path / "run" / "summary.json").unlink()
    toy.run(tmp_path)
    *_, note = summary_of(tmp_path)["notes"]
    usual = "2 images were scored with 16 masks, 16 points and 1 images at a time, 1 with 2 masks, "
    assert note.startswith(usual)
    assert note in (tmp_path / "run" / "report.md").read_text()
