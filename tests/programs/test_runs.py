"""Whole runs: shards, sources of proposals, methods and their settings, protocols, datasets."""

from __future__ import annotations

import json
import pickle
import random
import re
import shutil
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation.breakdowns import BREAKDOWNS
from pycocotools import mask as coco_mask

import hybridgl_main
import save_attn_gem
from evaluation.records import read_records
from evaluation.report import draw_samples
from evaluation.run import prepare
from hybridgl.config import PROPOSALS_PHRASECUT, PROPOSALS_SHAPES, FusionConfig, GuidanceConfig
from hybridgl.metrics import PROTOCOLS
from hybridgl.models.clip import ClipEncoder
from refer.refer import load_refer
from tests.factories_clip import resnet_clip_state, save_npz
from tests.programs.conftest import NUM_IMAGES
from tests.refer_factories import HW, custom_coco, mini_phrasecut, mini_refer, write_images

PROGRAMS = [save_attn_gem.main, hybridgl_main.main]
METHODS = ("hybridgl", "global_local")
PROFILES = ("reference", "corrected")

pytestmark = pytest.mark.usefixtures("without_figures")


def run(argv):
    assert hybridgl_main.main([*map(str, argv)]) == 0


def content_of(folder) -> bytes:
    return (folder / "run" / "records.jsonl").read_bytes()


def records_of(folder):
    return read_records(folder / "run" / "records.jsonl")


def summary_of(folder):
    return json.loads((folder / "run" / "summary.json").read_text())


def picks_of(folder, name="guided"):
    """The whole pick of every sample, so that equal ones are equal in their counts too."""
    return {(r.ref_id, r.sent_id): r.picks[name] for r in records_of(folder)}


def note_caps(_method, _source, _split, _records, k_limits, folder):
    """In the place of figures, the k_limits that they would be drawn with."""
    (folder.parent / "k_limits.txt").write_text(repr(k_limits))


def caps_noted(folder) -> str:
    return (folder / "run" / "k_limits.txt").read_text()


@pytest.fixture(scope="module", autouse=True)
def each_clip_loaded_once():
    """Most of a small run's time goes into loading the same file."""
    with pytest.MonkeyPatch.context() as patch:
        loaded = SimpleNamespace(from_file=lru_cache(ClipEncoder.from_file))
        patch.setattr("hybridgl.models.models.ClipEncoder", loaded)
        yield


@pytest.fixture(scope="module")
def stocked(arguments, tmp_path_factory) -> Path:
    """A folder whose store holds proposals, GEM maps and features of the world; read it only."""
    folder = tmp_path_factory.mktemp("stocked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.run.draw_samples", lambda *_: None)
        run(arguments(folder))
    return folder


@pytest.fixture(scope="module")
def common_store(stocked, tmp_path_factory) -> Path:
    """A store for all runs that do not count what they find."""
    return Path(shutil.copytree(stocked / "store", tmp_path_factory.mktemp("common") / "store"))


@pytest.fixture
def given(arguments, common_store):
    """Arguments for a run into a folder, with the common store."""

    def build(folder, *more):
        return [*arguments(folder), "--store", str(common_store), *map(str, more)]

    return build


@pytest.fixture
def copied(stocked, tmp_path) -> Path:
    """A folder with a copy of the store of its own."""
    shutil.copytree(stocked / "store", tmp_path / "store")
    return tmp_path


@pytest.fixture(scope="module")
def serial(arguments, common_store, tmp_path_factory):
    """Records of a run in one piece, by method and profile; each made once."""
    made: dict[tuple[str, str], Path] = {}

    def folder_of(method, profile) -> Path:
        if (method, profile) not in made:
            folder = made[method, profile] = tmp_path_factory.mktemp(f"{method}-{profile}")
            more = ["--store", str(common_store), "--method", method, "--profile", profile]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("evaluation.run.draw_samples", note_caps)
                run([*arguments(folder), *more])
        return made[method, profile]

    return folder_of


@pytest.fixture
def refused(capsys, tmp_path):
    """Checks that a program refuses its arguments on one line, in all of these words."""

    def check(argv, *words, program=hybridgl_main.main):
        argv = [*map(str, argv)]
        if program is save_attn_gem.main:
            at = argv.index("--output")
            argv = argv[:at] + argv[at + 2 :]
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert program(argv) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        line = printed.err.splitlines()[-1]
        assert line.startswith("error: ")
        for word in words:
            assert str(word) in line
        assert sorted(tmp_path.rglob("*")) == before

    return check


def compressed(mask_HW):
    rle = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}


def uncompressed(mask_HW):
    pixels = np.concatenate([[False], mask_HW.T.ravel(), [not mask_HW[-1, -1]]])
    edges = np.flatnonzero(pixels[1:] != pixels[:-1])
    return {"size": list(mask_HW.shape), "counts": np.diff([0, *edges]).tolist()}


def box(x1, y1, x2, y2):
    mask_HW = np.zeros(HW, dtype=bool)
    mask_HW[y1:y2, x1:x2] = True
    return mask_HW


def write_masks(path, masks_by_image, encode=compressed):
    rows = [
        {"image_id": image_id, "segmentation": encode(mask_HW), "score": 0.5}
        for image_id, masks in masks_by_image.items()
        for mask_HW in masks
    ]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def refcoco_root(tmp_path_factory) -> Path:
    """A small folder in RefCOCO's layout; read it only."""
    root = tmp_path_factory.mktemp("refcoco")
    mini_refer("refcoco").write(root)
    return root


@pytest.fixture(scope="module")
def refcoco_split(refcoco_root):
    return load_refer(refcoco_root, "refcoco", "val", check_counts=False)


@pytest.fixture
def refcoco(given, refcoco_root):
    """Arguments for its split val, without SAM."""

    def build(folder, *more):
        data = ["--dataset", "refcoco", "--weights", "tiny", "--refer_data_root", refcoco_root]
        return given(folder, *data, "--sam_checkpoint", "there/is/none.pth", *more)

    return build


# Shards.


def shard_file(folder, index, total) -> Path:
    return folder / "run" / "shards" / f"{index}-of-{total}.jsonl"


def kill(*_, **__):
    raise KeyboardInterrupt


def rows_of_shard(folder, index, total):
    """Each record of a shard with the k_limits that it is for."""
    lines = shard_file(folder, index, total).read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"k_limits": ')]


@pytest.mark.parametrize(
    ("method", "profile", "total"),
    [
        ("hybridgl", "reference", 2),
        ("hybridgl", "reference", 3),
        ("hybridgl", "reference", NUM_IMAGES + 2),
        ("hybridgl", "corrected", 2),
        ("global_local", "reference", 2),
        ("global_local", "corrected", 2),
    ],
)
def test_shards_in_any_order_give_the_records_of_one_run(
    method, profile, total, given, serial, tmp_path, capsys, monkeypatch
):
    expected = serial(method, profile)
    monkeypatch.setattr("evaluation.run.draw_samples", note_caps)
    indices = random.Random(total).sample(range(1, total + 1), total)
    capsys.readouterr()
    for place, index in enumerate(indices):
        missing = [f"shard {i}/{total}" for i in sorted(indices[place:])]
        assert not (tmp_path / "run" / "records.jsonl").exists()
        more = ["--method", method, "--profile", profile, "--shard", f"{index}/{total}"]
        run(given(tmp_path, *more))
        printed = capsys.readouterr().out
        if missing[1:]:
            left = [name for name in missing if name != f"shard {index}/{total}"]
            assert printed.endswith(f"missing: {', '.join(left)}\n")
            assert [path.name for path in (tmp_path / "run").iterdir()] == ["shards"]
    assert content_of(tmp_path) == content_of(expected)
    for name in ("settings", "counts", "scores", "intervals", "breakdowns", "warnings"):
        assert summary_of(tmp_path)[name] == summary_of(expected)[name]
    assert caps_noted(tmp_path) == caps_noted(expected)


@pytest.mark.parametrize("profile", PROFILES)
def test_quirk_5_acts_across_shards_as_in_one_run(profile, given, sam_masks, from_file, tmp_path):
    """The third image, in the first shard, has two masks, which moves picks in the second shard."""
    *_, small, last = sam_masks
    options = ["--profile", profile, *from_file({**sam_masks, small: sam_masks[small][:2]})]
    run(given(tmp_path / "one", *options))
    for index in (2, 1):
        run(given(tmp_path / "two", *options, "--shard", f"{index}/2"))
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")
    merged = {r.sent_id: r.to_json() for r in records_of(tmp_path / "two") if r.image_id == last}
    alone = {
        row["record"]["sent_id"]: json.dumps(row["record"])
        for row in rows_of_shard(tmp_path / "two", 2, 2)
        if row["record"]["image_id"] == last and max(row["k_limits"]) == len(sam_masks[last])
    }
    assert alone.keys() == merged.keys()
    assert (alone == merged) == (profile == "corrected")


def test_shards_need_not_share_a_store(arguments, given, tmp_path, monkeypatch):
    """The one that merges makes again what its figures of the others' images need."""
    run(given(tmp_path / "one", "--limit", "2"))
    monkeypatch.setattr("evaluation.run.draw_samples", draw_samples)
    monkeypatch.setattr("evaluation.report.draw_prediction", lambda *_, **__: b"a figure")
    monkeypatch.setattr("evaluation.report.draw_gallery", lambda *_: b"a gallery")
    for index, stored in ((2, 1), (1, 2)):
        store = tmp_path / f"store {index}"
        run([*arguments(tmp_path), "--limit", "2", "--store", store, "--shard", f"{index}/2"])
        assert len(list((store / "proposals").rglob("*.safetensors"))) == stored
    assert content_of(tmp_path) == content_of(tmp_path / "one")
    assert (tmp_path / "run" / "figures" / "gallery.png").read_bytes() == b"a gallery"
    assert summary_of(tmp_path)["store"]["made"]["proposals"] == 2


def test_refs_of_one_image_on_both_sides_of_a_small_one(refcoco, refcoco_split, tmp_path):
    """Caps belong to refs: the split names the left objects first, then the right ones, back."""
    first, second, third = refcoco_split.images
    boxes = [box(8, 16, 32, 48), box(56, 16, 80, 48), box(36, 52, 60, 60), box(0, 0, 90, 9)]
    boxes += [box(0, 0, 96, 64), box(20, 30, 70, 40)]
    path = write_masks(tmp_path / "masks.json", {first: boxes, second: boxes[:2], third: boxes})
    run(refcoco(tmp_path / "one", "--proposals", f"coco:{path}"))
    for index in (3, 1, 2):
        more = ("--proposals", f"coco:{path}", "--shard", f"{index}/3")
        run(refcoco(tmp_path / "three", *more))
    assert content_of(tmp_path / "three") == content_of(tmp_path / "one")
    variants = {}
    for index in (1, 2, 3):
        for row in rows_of_shard(tmp_path / "three", index, 3):
            for k_limit in row["k_limits"]:
                variants[row["record"]["sent_id"], k_limit] = row["record"]
    assert {k_limit for _, k_limit in variants} == {1, 2, 3, 4, 5, 6}
    moved = 0
    for record in records_of(tmp_path / "three"):
        left = record.ref_id % 2 == 0
        row = json.loads(record.to_json())
        assert row == variants[record.sent_id, 6 if left and record.image_id == first else 2]
        moved += record.image_id == third and row != variants[record.sent_id, 6]
    assert moved


def test_damaged_shard_is_named_and_mended_by_running_it_again(given, serial, tmp_path, capsys):
    run(given(tmp_path, "--shard", "1/2"))
    path = shard_file(tmp_path, 1, 2)
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(bytes(content))
    assert hybridgl_main.main(given(tmp_path, "--shard", "2/2")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert "is damaged" in line
    assert [item.name for item in (tmp_path / "run" / "shards").iterdir()] == [path.name]
    for shard in ("1/2", "2/2"):
        run(given(tmp_path, "--shard", shard))
    assert content_of(tmp_path) == content_of(serial("hybridgl", "reference"))


def test_shard_of_other_settings_is_named_and_mended_by_running_it_again(
    given, serial, tmp_path, capsys
):
    run(given(tmp_path, "--shard", "1/2", "--alpha", "0.3"))
    capsys.readouterr()
    assert hybridgl_main.main(given(tmp_path, "--shard", "2/2")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{shard_file(tmp_path, 1, 2)} was made with other settings" in line
    assert [item.name for item in (tmp_path / "run").iterdir()] == ["shards"]
    shard_file(tmp_path, 1, 2).unlink()
    for shard in ("1/2", "2/2"):
        run(given(tmp_path, "--shard", shard))
    assert content_of(tmp_path) == content_of(serial("hybridgl", "reference"))


def test_shard_of_another_number_lies_beside_and_is_ignored(given, serial, tmp_path):
    run(given(tmp_path, "--shard", "2/3", "--alpha", "0.3"))
    for index in (1, 2):
        run(given(tmp_path, "--shard", f"{index}/2"))
    assert content_of(tmp_path) == content_of(serial("hybridgl", "reference"))
    assert shard_file(tmp_path, 2, 3).is_file()


def test_shard_again_after_the_merge_gives_the_same_files(
    given, serial, tmp_path, monkeypatch, capsys
):
    expected = serial("hybridgl", "reference")
    for index in (1, 2):
        run(given(tmp_path, "--shard", f"{index}/2"))
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.run.write_records", kill)
        assert hybridgl_main.main(given(tmp_path, "--shard", "1/2")) == 130
    # A summary vouches for what lies beside it.
    assert not (tmp_path / "run" / "summary.json").exists()
    run(given(tmp_path, "--shard", "1/2"))
    assert content_of(tmp_path) == content_of(expected)
    assert summary_of(tmp_path)["settings"] == summary_of(expected)["settings"]


def test_merged_folder_refuses_a_shard_of_other_settings_before_any_work(given, refused, tmp_path):
    for index in (1, 2):
        run(given(tmp_path, "--shard", f"{index}/2"))
    before = shard_file(tmp_path, 1, 2).read_bytes()
    refused(given(tmp_path, "--shard", "1/2", "--alpha", "0.3"), "other method", "--output DIR")
    assert shard_file(tmp_path, 1, 2).read_bytes() == before


def test_one_run_and_shards_may_follow_each_other_in_a_folder(given, serial, tmp_path, capsys):
    shutil.copytree(serial("hybridgl", "reference") / "run", tmp_path / "run")
    content = content_of(tmp_path)
    for shard in (["--shard", "1/2"], ["--shard", "2/2"]):
        run(given(tmp_path, *shard))
        assert content_of(tmp_path) == content
    capsys.readouterr()
    run(given(tmp_path))
    assert "the records were there" in capsys.readouterr().out
    assert content_of(tmp_path) == content


def test_shard_of_a_machine_that_lacks_an_image_is_named(refcoco, tmp_path, capsys):
    mini_refer("refcoco").write(tmp_path / "data")
    root = ["--refer_data_root", tmp_path / "data", "--proposals", "gt"]
    run(refcoco(tmp_path, *root, "--shard", "1/2"))
    split = load_refer(tmp_path / "data", "refcoco", "val", check_counts=False)
    split.image_path(next(iter(split.images))).unlink()
    capsys.readouterr()
    assert hybridgl_main.main([*map(str, refcoco(tmp_path, *root, "--shard", "2/2"))]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{shard_file(tmp_path, 1, 2)} was made with other images missing" in line
    for shard in ("1/2", "2/2"):
        run(refcoco(tmp_path, *root, "--shard", shard))
    assert summary_of(tmp_path)["counts"]["images_missing"] == 1
    assert sum(record.image_missing for record in records_of(tmp_path)) == 5


@pytest.mark.parametrize(
    "stopped_at",
    ["hybridgl_main.evaluate", "hybridgl_main.write_shard", "evaluation.run.write_records"],
)
def test_killed_between_shards_or_while_merging(
    stopped_at, given, serial, tmp_path, monkeypatch, capsys
):
    run(given(tmp_path, "--shard", "3/3"))
    run(given(tmp_path, "--shard", "1/3"))
    with monkeypatch.context() as patch:
        patch.setattr(stopped_at, kill)
        assert hybridgl_main.main(given(tmp_path, "--shard", "2/3")) == 130
    written = stopped_at == "evaluation.run.write_records"
    assert shard_file(tmp_path, 2, 3).exists() == written
    assert not (tmp_path / "run" / "summary.json").exists()
    # Where all shards are there, any of them merges.
    run(given(tmp_path, "--shard", "1/3" if written else "2/3"))
    assert content_of(tmp_path) == content_of(serial("hybridgl", "reference"))


def test_shards_share_the_default_folder_of_their_run(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index in (1, 2):
        argv = given(tmp_path, "--shard", f"{index}/2")
        at = argv.index("--output")
        run(argv[:at] + argv[at + 2 :])
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("shapes-val-G2L-reference")
    assert {path.name for path in folder.iterdir()} >= {"shards", "records.jsonl", "summary.json"}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("text", ["0/3", "4/3", "a/b", "3", "1/", "1/99999"])
def test_wrong_shard_is_refused_before_anything_is_written(program, text, tmp_path, capsys):
    store = ["--store", str(tmp_path / "store"), "--refer_data_root", str(tmp_path / "data")]
    with pytest.raises(SystemExit) as stop:
        program([*store, "--shard", text])
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"Expected --shard i/n with i from 1 to n, such as 2/8, and n below 10,000, got {text!r}."
        in message
    )
    assert not list(tmp_path.iterdir())


def test_shards_of_stage_1_fill_one_store(arguments, stocked, tmp_path, capsys):
    argv, phrases = arguments(tmp_path, output=False), 0
    for index, images in ((5, 0), (2, 1), (1, 1), (4, 1), (3, 1)):
        assert save_attn_gem.main([*argv, "--shard", f"{index}/5"]) == 0
        printed = capsys.readouterr().out
        assert f"in {images} images in " in printed
        assert f"0 images found there, {images} made" in printed
        phrases += int(re.match(r"maps of (\d+) noun phrases", printed)[1])
    made, expected = (
        {path.name for path in (folder / "store" / "gem").rglob("*.safetensors")}
        for folder in (tmp_path, stocked)
    )
    assert made == expected
    assert save_attn_gem.main(argv) == 0
    printed = capsys.readouterr().out
    assert f"maps of {phrases} noun phrases in 4 images" in printed
    assert "4 images found there, 0 made" in printed


# Sources of proposals.


def prepared(argv):
    """The run of some arguments, ready to start."""
    return prepare(hybridgl_main.build_parser().parse_args([*map(str, argv)]))


@pytest.fixture(scope="module")
def sam_proposals(arguments, stocked):
    """SAM's proposals of every image of the world, from the store."""
    this = prepared(arguments(stocked))
    return {
        image_id: this.source.propose(image_id, this.split.open_image(image_id))
        for image_id in this.split.images
    }


@pytest.fixture(scope="module")
def sam_masks(sam_proposals):
    return {image_id: proposals.masks_NHW for image_id, proposals in sam_proposals.items()}


@pytest.fixture
def from_file(tmp_path):
    """Options for a run on masks from a file, for which SAM's weights are not needed."""

    def options(masks_by_image, **how):
        path = write_masks(tmp_path / "masks.json", masks_by_image, **how)
        missing = tmp_path / "there is no sam.pth"
        return ["--proposals", f"coco:{path}", "--sam_checkpoint", missing]

    return options


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("profile", PROFILES)
def test_masks_of_sam_from_a_file_give_the_records_of_sam(
    method, profile, given, serial, sam_masks, from_file, tmp_path
):
    expected = serial(method, profile)
    encode = compressed if profile == "reference" else uncompressed
    more = ["--method", method, "--profile", profile, *from_file(sam_masks, encode=encode)]
    run(given(tmp_path, *more))
    assert content_of(tmp_path) == content_of(expected)
    # The masks are the same, and so are their features.
    kind = "features" if method == "hybridgl" else "global-local"
    assert summary_of(tmp_path)["store"]["found"][kind] == NUM_IMAGES
    assert summary_of(tmp_path)["store"]["made"] == {}
    assert "sam" not in summary_of(tmp_path)["settings"]["weights"]
    assert summary_of(tmp_path)["settings"]["proposals"]["source"] == "coco"


def test_masks_of_sam_from_a_file_have_the_boxes_of_sam(given, sam_proposals, from_file, tmp_path):
    masks = {image_id: proposals.masks_NHW for image_id, proposals in sam_proposals.items()}
    this = prepared(given(tmp_path, *from_file(masks)))
    for image_id, expected in sam_proposals.items():
        came = this.source.propose(image_id, this.split.open_image(image_id))
        np.testing.assert_array_equal(came.masks_NHW, expected.masks_NHW)
        np.testing.assert_array_equal(came.boxes_xywh, expected.boxes_xywh)


def test_form_of_annotations_gives_the_records_of_results(
    given, serial, sam_masks, tmp_path, world
):
    path = write_masks(tmp_path / "masks.json", sam_masks)
    rows = json.loads(path.read_text())
    listed = json.loads((world / "shapes" / "instances.json").read_text())["images"]
    path.write_text(json.dumps({"images": listed, "annotations": rows, "categories": []}))
    run(given(tmp_path, "--proposals", f"coco:{path}"))
    assert content_of(tmp_path) == content_of(serial("hybridgl", "reference"))


@pytest.mark.parametrize("method", METHODS)
def test_order_of_the_masks_moves_indices_only(
    method, given, serial, sam_masks, from_file, tmp_path
):
    backwards = {image_id: masks_NHW[::-1] for image_id, masks_NHW in sam_masks.items()}
    run(given(tmp_path, "--method", method, *from_file(backwards)))
    plain = records_of(serial(method, "reference"))
    for record, other in zip(records_of(tmp_path), plain, strict=True):
        for name, pick in record.picks.items():
            theirs = other.picks[name]
            assert pick.index == record.num_proposals - 1 - theirs.index
            assert (pick.area, pick.intersection) == (theirs.area, theirs.intersection)


def test_images_without_an_entry_have_no_proposals_and_are_named(
    given, sam_masks, from_file, tmp_path, world
):
    """Nor do they lower the candidate counts of later images (Q5)."""
    listed = json.loads((world / "shapes" / "instances.json").read_text())["images"]
    *_, small, last = sam_masks
    file_names = {image["id"]: image["file_name"] for image in listed}
    run(given(tmp_path, *from_file({i: m for i, m in sam_masks.items() if i != small})))
    (problem,) = summary_of(tmp_path)["warnings"]
    assert "1 of 4 images have no entry" in problem
    assert Path(file_names[small]).name in problem
    assert problem in (tmp_path / "run" / "report.md").read_text()
    empty = [record for record in records_of(tmp_path) if not record.num_proposals]
    assert {record.image_id for record in empty} == {small}
    assert summary_of(tmp_path)["counts"]["without_proposals"] == len(empty) > 0
    many = {**sam_masks, small: np.concatenate([sam_masks[small]] * 3)}
    run(given(tmp_path / "many", *from_file(many)))
    after = [
        [r for r in records_of(f) if r.image_id == last] for f in (tmp_path, tmp_path / "many")
    ]
    assert after[0] == after[1]


def entry(image_id, segmentation):
    return {"image_id": image_id, "segmentation": segmentation, "score": 1.0}


FULL = compressed(box(0, 0, HW[1], HW[0]))
REFUSED = {
    "other images": ([("cat.jpg", FULL), (7, FULL)], "entry 0 has image_id 'cat.jpg'"),
    "wrong size": ([(0, FULL), (1, {"size": [96, 64], "counts": [6144]})], "entry 1 (image_id "),
    "broken RLE": ([(0, FULL), (1, FULL | {"counts": "0"})], "entry 1, of image "),
    "unreadable RLE": ([(0, FULL), (1, FULL | {"counts": "~~"})], "entry 1 (image_id "),
    "boxes": ([(0, FULL), (1, None)], "entry 1 (image_id "),
}


@pytest.mark.parametrize(("rows", "said"), REFUSED.values(), ids=REFUSED)
def test_unusable_file_is_refused_before_anything_is_written(
    rows, said, refcoco, refcoco_split, refused, tmp_path
):
    ids = list(refcoco_split.images)
    content = []
    for image, segmentation in rows:
        image_id = ids[image] if image in (0, 1) else image
        content.append(entry(image_id, segmentation))
        if segmentation is None:
            content[-1] = {"image_id": image_id, "bbox": [1, 1, 9, 9], "score": 1.0}
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(content))
    argv = [*refcoco(tmp_path, "--proposals", f"coco:{path}"), "--store", tmp_path / "store"]
    refused(argv, path, said)


def test_missing_file_is_refused_before_anything_is_read(arguments, refused, tmp_path):
    path = tmp_path / "gone.json"
    data = ["--refer_data_root", tmp_path / "data"]
    refused([*arguments(tmp_path), *data, "--proposals", f"coco:{path}"], path, "found no such")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("profile", PROFILES)
def test_annotated_objects_leave_nothing_to_wish(method, profile, refcoco, tmp_path):
    run(refcoco(tmp_path, "--proposals", "gt", "--method", method, "--profile", profile))
    records = records_of(tmp_path)
    assert len(records) == 15
    for record in records:
        assert record.num_proposals == 2  # the crowd is left out
        assert record.best_iou == 1
    larger = max(record.target_area for record in records)
    assert larger == (768 if profile == "reference" else 896)
    assert summary_of(tmp_path)["scores"]["best"] == {"mIoU": 100}
    assert "sam" not in summary_of(tmp_path)["settings"]["weights"]


def test_annotated_objects_of_the_world_leave_nothing_to_wish(given, tmp_path):
    run(given(tmp_path, "--proposals", "gt", "--sam_checkpoint", tmp_path / "none"))
    assert {record.best_iou for record in records_of(tmp_path)} == {1.0}


def test_an_empty_mask_among_the_proposals_gives_finite_scores(refcoco, refcoco_split, tmp_path):
    masks = [box(0, 0, 0, 0), box(0, 0, 96, 64), box(5, 5, 6, 6), box(8, 16, 32, 48)]
    path = write_masks(tmp_path / "masks.json", dict.fromkeys(refcoco_split.images, masks))
    for method in METHODS:
        argv = refcoco(tmp_path / method, "--proposals", f"coco:{path}", "--method", method)
        run(argv)
        this = prepared(argv)
        for image_id in this.split.images:
            image = this.split.open_image(image_id)
            expressions = this.method.parse(["the red box", "box left of the blue thing"])
            for scores in this.method.score(
                image, this.source.propose(image_id, image), expressions
            ):
                assert np.isfinite(scores.similarity_N).all()
                assert np.isfinite(scores.coherence_N).all()


# Methods.


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory) -> Path:
    return save_npz(tmp_path_factory.mktemp("resnet") / "resnet.npz", resnet_clip_state())


def test_baseline_runs_with_either_tower(refcoco, clip_file, resnet_file, tmp_path, capsys):
    picks = []
    for clip in (clip_file, resnet_file):
        folder = tmp_path / clip.stem
        given = ["--method", "global_local", "--proposals", "gt", "--clip_weights", clip]
        run(refcoco(folder, *given))
        summary = summary_of(folder)
        assert summary["settings"]["method"]["name"] == "global_local"
        assert summary["setting"].startswith(f"global_local, reference profile, CLIP {clip.name}")
        assert list(summary["scores"]) == ["pure", "random", "best"]
        assert "gem" not in {**summary["store"]["found"], **summary["store"]["made"]}
        assert {tuple(record.picks) for record in records_of(folder)} == {("pure",)}
        assert "published, Global-Local CLIP" in capsys.readouterr().out
        picks.append(picks_of(folder, "pure"))
    assert picks[0].keys() == picks[1].keys()
    assert picks[0] != picks[1]


@pytest.mark.parametrize("program", PROGRAMS)
def test_resnet_is_refused_by_the_method(program, arguments, resnet_file, refused, tmp_path):
    argv = [*arguments(tmp_path), "--clip_weights", resnet_file]
    refused(argv, "vision transformer", "got a ResNet", "ViT-B-16", program=program)


def test_each_method_has_its_own_clip_of_the_paper(given, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDGL_WEIGHTS", str(tmp_path / "weights"))
    for method, file in (("hybridgl", "ViT-B-16.pt"), ("global_local", "ViT-B-32.pt")):
        argv = given(tmp_path, "--weights", "paper", "--method", method, "--proposals", "gt")
        at = argv.index("--clip_weights")
        refused(argv[:at] + argv[at + 2 :], tmp_path / "weights" / file)


@pytest.mark.parametrize("profile", PROFILES)
def test_baseline_skips_images_without_proposals_by_quirk_8_alone(
    profile, refcoco, refcoco_split, tmp_path, capsys
):
    _, empty, _ = refcoco_split.images
    masks = {i: [box(8, 16, 32, 48), box(56, 16, 80, 48)] for i in refcoco_split.images}
    del masks[empty]
    path = write_masks(tmp_path / "masks.json", masks)
    for method in METHODS:
        folder = tmp_path / method
        more = ["--method", method, "--profile", profile, "--proposals", f"coco:{path}"]
        run(refcoco(folder, *more))
        printed = capsys.readouterr().out
        skipped = method == "global_local" and profile == "reference"
        records = records_of(folder)
        assert len(records) == 15
        kept = [r for r in records if r.num_proposals or not skipped]
        assert len(kept) == (10 if skipped else 15)
        ious = [r.picks["pure"].intersection / r.picks["pure"].union for r in kept]
        scores, counts = summary_of(folder)["scores"], summary_of(folder)["counts"]
        assert scores["pure"]["mIoU"] == pytest.approx(100 * np.mean(ious))
        assert scores["best"]["mIoU"] == pytest.approx(100 * np.mean([r.best_iou for r in kept]))
        assert counts["without_proposals"] == 5
        assert counts["left_out"] == (5 if skipped else 0)
        assert counts["sentences"] == 15
        assert ("5 of them left out (Q8)" in printed) == skipped
        assert summary_of(folder)["breakdowns"]["length"]["all"]["n"] == len(kept)


def test_mixing_weight_reuses_both_parts_of_the_features(given, serial, tmp_path):
    default = serial("global_local", "reference")
    picks = {}
    for weight in ("0", "0.95", "1"):
        folder = tmp_path / weight
        run(given(folder, "--method", "global_local", "--mixing_weight", weight))
        assert summary_of(folder)["settings"]["method"]["mixing_weight"] == float(weight)
        assert summary_of(folder)["store"]["made"] == {}
        picks[weight] = picks_of(folder, "pure")
    assert picks["0"] != picks["1"]
    assert picks["0.95"] == picks_of(default, "pure")


@pytest.mark.parametrize(
    ("dataset", "weight"), [("refcoco", 0.95), ("refcoco+", 0.95), ("refcocog", 0.85)]
)
def test_mixing_weight_is_that_of_the_dataset(dataset, weight, given, tmp_path):
    mini_refer(dataset).write(tmp_path / "data")
    data = ["--dataset", dataset, "--weights", "tiny", "--refer_data_root", tmp_path / "data"]
    argv = given(tmp_path, *data, "--method", "global_local", "--proposals", "gt")
    assert prepared(argv).settings["method"]["mixing_weight"] == weight
    assert prepared([*argv, "--mixing_weight", 0.5]).settings["method"]["mixing_weight"] == 0.5


def test_methods_of_a_split_share_the_stored_proposals(arguments, copied):
    argv = [*arguments(copied), "--method", "global_local"]
    run(argv)
    found, made = {"proposals": NUM_IMAGES}, {"global-local": NUM_IMAGES}
    assert summary_of(copied)["store"] == {"found": found, "made": made}
    run([*argv, "--output", copied / "again" / "run"])
    assert summary_of(copied / "again")["store"] == {"found": {**found, **made}, "made": {}}


# Settings.


def judged(argv):
    """By sentence: what is read off it, and every number that leads to its pick."""
    this = prepared(argv)
    rows = {}
    for image_id, refs in this.split.refs_by_image().items():
        sentences = [sentence for ref in refs for sentence in ref.sentences]
        image = this.split.open_image(image_id)
        proposals = this.source.propose(image_id, image)
        expressions = this.method.parse([sentence.raw for sentence in sentences])
        scored = this.method.score(image, proposals, expressions)
        for sentence, expression, scores in zip(sentences, expressions, scored, strict=True):
            choice = this.method.choose(scores).choice
            rows[sentence.sent_id] = {
                "expression": expression,
                "own": scores.similarity_N.tolist(),
                "other": None
                if scores.other_noun_similarity_N is None
                else scores.other_noun_similarity_N.tolist(),
                "coherence": scores.coherence_N.tolist(),
                "map": scores.patch_similarity_gg is not None,
                "candidates": choice.candidates_K.tolist(),
                "relation": choice.relation_K.tolist(),
                "final": choice.final_K.tolist(),
                "pure": choice.features,
                "guided": choice.pick,
            }
    return rows


@pytest.fixture(scope="module")
def plain(arguments, common_store, tmp_path_factory):
    """``judged`` with the default settings."""
    folder = tmp_path_factory.mktemp("plain")
    return judged([*arguments(folder), "--store", common_store])


def changed(rows, plain, *names):
    """Sentences that are not the same in one of these."""
    return {i for i in plain if any(rows[i][name] != plain[i][name] for name in names)}


def softmax(values):
    powers = np.exp(np.array(values) - max(values))
    return powers / powers.sum()


def test_settings_have_sentences_to_act_on(plain):
    """What the tests of single settings below rely on."""
    expressions = [row["expression"] for row in plain.values()]
    assert {"big", "small", "none", "left"} <= {e.relation.value for e in expressions}
    assert {"left", "none"} <= {e.position.value for e in expressions}
    assert {True, False} == {bool(e.other_nouns) for e in expressions}
    assert {True, False} == {e.noun_phrase == e.sentence for e in expressions}


def test_without_position_changes_the_heat_of_position_words_alone(given, plain, tmp_path):
    rows = judged(given(tmp_path, "--without", "position"))
    horizontal = {
        i for i, row in plain.items() if row["expression"].position.value in ("left", "right")
    }
    assert changed(rows, plain, "coherence") == horizontal
    assert changed(rows, plain, "own", "other", "relation", "candidates") == set()
    assert changed(rows, plain, "final") == horizontal


def test_without_position_acts_on_vertical_words_in_corrected(given, tmp_path):
    corrected = ["--profile", "corrected"]
    whole = judged(given(tmp_path, *corrected))
    rows = judged(given(tmp_path, *corrected, "--without", "position"))
    placed = {i for i, row in whole.items() if row["expression"].position.value != "none"}
    vertical = {i for i, row in whole.items() if row["expression"].position.value == "down"}
    assert changed(rows, whole, "coherence") == placed > vertical > set()


def test_without_relationship_leaves_coherence_to_decide(given, plain, tmp_path):
    rows = judged(given(tmp_path, "--without", "relationship"))
    assert changed(rows, plain, "own", "other", "coherence", "candidates", "relation") == set()
    for row in rows.values():
        shown = [0.6 * row["coherence"][index] for index in row["candidates"]]
        assert row["final"] == pytest.approx(shown)
        assert row["guided"] == row["candidates"][int(np.argmax(shown))]


def test_without_coherence_leaves_relations_to_decide_and_needs_no_map(given, plain, tmp_path):
    rows = judged(given(tmp_path, "--without", "coherence"))
    assert changed(rows, plain, "own", "other", "candidates", "relation") == set()
    for row in rows.values():
        assert not any(row["coherence"])
        assert not row["map"]
        assert row["final"] == pytest.approx(0.4 * softmax(row["relation"]))
    assert all(row["map"] for row in plain.values())


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.6, 1.0])
def test_alpha_is_the_share_of_coherence(alpha, given, plain, tmp_path):
    rows = judged(given(tmp_path, "--alpha", alpha))
    assert changed(rows, plain, "own", "other", "coherence", "candidates", "relation") == set()
    for row in rows.values():
        coherence = np.array([row["coherence"][index] for index in row["candidates"]])
        mixed = (1 - alpha) * softmax(row["relation"]) + alpha * coherence
        assert row["final"] == pytest.approx(mixed)


@pytest.mark.parametrize("count", [1, 2, 5, 100])
def test_number_of_candidates_is_the_number_of_masks_to_pick_from(count, given, plain, tmp_path):
    rows = judged(given(tmp_path, "--num_candidates", count))
    assert changed(rows, plain, "own", "other", "coherence", "pure") == set()
    for i, row in rows.items():
        best_first = np.argsort(-np.array(row["own"]), kind="stable").tolist()
        assert row["candidates"] == best_first[:count]
        assert plain[i]["candidates"] == best_first[:3]


def test_number_of_partners_acts_where_there_are_other_nouns(given, plain, tmp_path):
    rows = judged(given(tmp_path, "--num_context_masks", 1))
    assert changed(rows, plain, "own", "other", "coherence", "candidates") == set()
    others = {i for i, row in plain.items() if row["expression"].other_nouns}
    assert set() < changed(rows, plain, "relation") <= others
    unrelated = {i for i in others if plain[i]["expression"].relation.value == "none"}
    for i in unrelated:
        num_partners = min(6, len(plain[i]["own"]))
        assert plain[i]["relation"] == pytest.approx(num_partners * np.array(rows[i]["relation"]))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_coherence_weight_acts_on_its_relation(place, given, plain, tmp_path):
    default = GuidanceConfig()
    weights = [default.outside_weight, default.outside_weight_big, default.outside_weight_small]
    weights[place] = 1.0
    rows = judged(given(tmp_path, "--coherence_weights", *weights))
    kinds = {"big": 1, "small": 2}
    expected = {
        i for i, row in plain.items() if kinds.get(row["expression"].relation.value, 0) == place
    }
    assert changed(rows, plain, "coherence") == expected > set()
    assert changed(rows, plain, "own", "other", "candidates", "relation") == set()


def test_sentence_weight_acts_where_the_noun_phrase_is_not_the_sentence(given, plain, tmp_path):
    alone, phrase = (judged(given(tmp_path, "--sentence_weight", weight)) for weight in (1, 0))
    longer = {
        i for i, row in plain.items() if row["expression"].noun_phrase != row["expression"].sentence
    }
    for rows in (alone, phrase):
        assert changed(rows, plain, "other", "coherence") == set()
        for i, row in rows.items():
            same = np.allclose(row["own"], plain[i]["own"], rtol=0, atol=1e-4)
            assert same == (i not in longer)
    assert 0 < len(longer) < len(plain)


def test_masking_block_changes_features_and_no_heat(given, plain, tmp_path):
    rows = judged(given(tmp_path, "--masking_block", 8))
    assert changed(rows, plain, "own") == set(plain)
    assert changed(rows, plain, "coherence") == set()


def test_without_any_term_the_guided_pick_is_the_pure_one(given, serial, tmp_path):
    run(given(tmp_path, "--without", "relationship", "coherence", "position"))
    assert picks_of(tmp_path, "guided") == picks_of(tmp_path, "pure")
    default = serial("hybridgl", "reference")
    assert picks_of(tmp_path, "pure") == picks_of(default, "pure") != picks_of(default, "guided")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("setting", [("--without", "coherence"), ("--alpha", "0")])
def test_without_coherence_and_alpha_0_are_the_pick_without_gem(
    setting, profile, given, serial, tmp_path
):
    run(given(tmp_path, "--profile", profile, *setting))
    default = serial("hybridgl", profile)
    no_gem = picks_of(default, "no_gem")
    assert picks_of(tmp_path, "guided") == picks_of(tmp_path, "no_gem") == no_gem
    assert no_gem != picks_of(default, "guided")
    assert no_gem != picks_of(default, "pure")


def test_without_coherence_no_map_is_computed(arguments, copied):
    shutil.rmtree(copied / "store" / "gem")
    run([*arguments(copied), "--without", "coherence"])
    assert not (copied / "store" / "gem").exists()
    everything = {"proposals": NUM_IMAGES, "features": NUM_IMAGES}
    assert summary_of(copied)["store"] == {"found": everything, "made": {}}


def test_one_candidate_leaves_no_choice(given, serial, tmp_path):
    run(given(tmp_path, "--num_candidates", "1"))
    pure = picks_of(serial("hybridgl", "reference"), "pure")
    for name in ("pure", "guided", "no_gem"):
        assert picks_of(tmp_path, name) == pure


def test_settings_of_the_guidance_find_every_stored_result(arguments, copied):
    more = ["--alpha", "0.3", "--num_candidates", "5", "--num_context_masks", "4", "--without"]
    more += ["position", "--coherence_weights", "1.5", "1.6", "1.7", "--sentence_weight", "0.9"]
    run([*arguments(copied), *more])
    everything = {"proposals": NUM_IMAGES, "gem": NUM_IMAGES, "features": NUM_IMAGES}
    assert summary_of(copied)["store"] == {"found": everything, "made": {}}
    described = summary_of(copied)["settings"]["method"]
    assert described["guidance"]["position"] is False
    assert described["guidance"]["coherence"] is True
    assert (described["guidance"]["alpha"], described["text"]["sentence_weight"]) == (0.3, 0.9)


def test_masking_block_makes_features_of_its_own(arguments, stocked, copied):
    run([*arguments(copied), "--masking_block", "8"])
    kept = {"proposals": NUM_IMAGES, "gem": NUM_IMAGES}
    assert summary_of(copied)["store"] == {"found": kept, "made": {"features": NUM_IMAGES}}
    assert summary_of(copied)["settings"]["method"]["fusion"]["masking_block"] == 8
    assert picks_of(copied, "pure") != picks_of(stocked, "pure")


@pytest.mark.parametrize("method", METHODS)
def test_masking_block_beyond_the_last_is_refused_by_name(method, given, refused, tmp_path):
    """The random CLIP has as many blocks as ViT-B-16, so that another CLIP is no remedy."""
    argv = [*given(tmp_path, "--method", method), "--masking_block", 12]
    refused(argv, "got 12", "--masking_block")


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
    ("proposals", "selective-search"),
]
SHARED_SETTINGS = {"sentence_weight", "masking_block", "proposals"}


@pytest.mark.parametrize(("setting", "value"), OUT_OF_RANGE)
def test_value_out_of_range_is_refused_by_name_before_anything_is_written(
    setting, value, arguments, refused, tmp_path
):
    argv = [*arguments(tmp_path), "--refer_data_root", tmp_path / "data"]
    for method in METHODS:
        if setting in SHARED_SETTINGS or (setting == "mixing_weight") == (method != "hybridgl"):
            more = ["--method", method, f"--{setting}", *value.split()]
            refused([*argv, *more], f"Expected --{setting} ", "got ")


@pytest.mark.parametrize(
    ("method", "given_settings"),
    [
        ("hybridgl", ["--mixing_weight", "0.5"]),
        ("global_local", ["--alpha", "0.5", "--without", "position"]),
        ("global_local", ["--fusion_mode", "L2G"]),
        ("global_local", ["--num_candidates", "5", "--num_context_masks", "5"]),
        ("global_local", ["--coherence_weights", "1", "1", "1"]),
    ],
)
def test_setting_that_the_method_does_not_read_is_refused_by_name(
    method, given_settings, arguments, refused, tmp_path
):
    argv = [*arguments(tmp_path), "--refer_data_root", tmp_path / "data"]
    named = [word for word in given_settings if word.startswith("--")]
    refused([*argv, "--method", method, *given_settings], method, *named)


ENDS = {
    "hybridgl": [
        "--alpha 0 --num_candidates 1 --num_context_masks 1 --coherence_weights 0 2 0",
        "--alpha 1 --num_candidates 999 --num_context_masks 999 --coherence_weights 2 0 2",
    ],
    "global_local": ["--mixing_weight 0", "--mixing_weight 1"],
}


@pytest.mark.parametrize("method", METHODS)
def test_values_at_the_ends_of_their_ranges_are_taken(method, given, tmp_path):
    shared = "--sentence_weight 0 --masking_block 0", "--sentence_weight 1 --masking_block 11"
    for own, common in zip(ENDS[method], shared, strict=True):
        argv = given(tmp_path, "--method", method, *own.split(), *common.split())
        this = prepared(argv)
        this.method.load()
        assert this.method.describe()["name"] == method


def test_defaults_given_by_name_are_no_changed_settings(given, tmp_path):
    weights = GuidanceConfig()
    numbers = (weights.outside_weight, weights.outside_weight_big, weights.outside_weight_small)
    plainly, by_name = (
        prepared(given(tmp_path, *more)) for more in ([], ["--coherence_weights", *numbers])
    )
    assert by_name.settings == plainly.settings
    assert by_name.changed == plainly.changed == {}


def test_summary_says_what_was_changed(given, tmp_path):
    run(given(tmp_path, "--without", "coherence", "position", "--num_context_masks", "2"))
    setting = summary_of(tmp_path)["setting"]
    assert setting.startswith("G2L, reference profile, CLIP clip.npz, proposals of SAM sam.npz")
    assert "without coherence position" in setting
    assert "num_context_masks 2" in setting
    assert "alpha" not in setting


def test_wrong_term_lists_the_right_ones(capsys):
    with pytest.raises(SystemExit):
        hybridgl_main.main(["--without", "gem"])
    message = capsys.readouterr().err
    for word in ("relationship", "coherence", "position", "'gem'"):
        assert word in message


def test_defaults_are_those_of_the_paper(given, tmp_path):
    described = prepared(given(tmp_path)).method.describe()
    assert described["guidance"]["num_candidates"] == GuidanceConfig().num_candidates == 3
    assert described["fusion"]["masking_block"] == FusionConfig().masking_block == 9


# Conventions.


@pytest.fixture(scope="module")
def by_convention(arguments, common_store, serial, tmp_path_factory):
    """Summary and report of every protocol, all run into one folder, which keeps its records."""
    folder = tmp_path_factory.mktemp("protocols")
    content = content_of(serial("hybridgl", "reference"))
    left = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.run.draw_samples", lambda *_: None)
        for name in PROTOCOLS:
            run([*arguments(folder), "--store", common_store, "--protocol", name])
            assert content_of(folder) == content
            report = (folder / "run" / "report.md").read_text()
            left[name] = SimpleNamespace(report=report, **summary_of(folder))
    return left


def test_convention_of_a_first_run_changes_no_record(given, serial, tmp_path):
    run(given(tmp_path, "--protocol", "lavt"))
    assert content_of(tmp_path) == content_of(serial("hybridgl", "reference"))


def test_conventions_have_names_and_values_of_their_own(by_convention):
    precisions = ["P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"]
    assert {name: list(left.scores["guided"]) for name, left in by_convention.items()} == {
        "zero-shot": ["oIoU", "mIoU", *precisions],
        "lavt": ["oIoU", "mIoU", *precisions],
        "lisa": ["cIoU", "gIoU"],
        "phrasecut": ["oIoU", "mIoU", *precisions],
    }
    zero_shot, lisa = by_convention["zero-shot"].scores, by_convention["lisa"].scores
    assert by_convention["lavt"].scores["guided"] != zero_shot["guided"]
    assert by_convention["phrasecut"].scores == zero_shot
    assert lisa["guided"]["gIoU"] == zero_shot["guided"]["mIoU"]
    assert lisa["guided"]["cIoU"] == zero_shot["guided"]["oIoU"]
    assert lisa["best"] == {"gIoU": zero_shot["best"]["mIoU"]}


def test_convention_is_named_and_no_setting(by_convention):
    for name, left in by_convention.items():
        assert left.protocol == name
        assert f"protocol {name}" in left.report
        assert left.settings == by_convention["zero-shot"].settings


def slow_scores(records, pick, protocol):
    suffix = "_480" if protocol == "lavt" else ""
    pairs = [
        (getattr(r.picks[pick], f"intersection{suffix}"), getattr(r.picks[pick], f"union{suffix}"))
        for r in records
    ]
    ious = [intersection / union for intersection, union in pairs]
    scores = [sum(i for i, _ in pairs) / sum(u for _, u in pairs), sum(ious) / len(ious)]
    for limit in () if protocol == "lisa" else (0.5, 0.6, 0.7, 0.8, 0.9):
        hits = [iou >= limit if protocol == "lavt" else iou > limit for iou in ious]
        scores.append(sum(hits) / len(hits))
    return [100 * score for score in scores]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_equal_a_loop_and_lie_in_their_intervals(protocol, by_convention, serial):
    left, records = by_convention[protocol], records_of(serial("hybridgl", "reference"))
    for pick in ("pure", "guided", "no_gem"):
        scores, intervals = left.scores[pick], left.intervals[pick]
        assert list(scores.values()) == pytest.approx(slow_scores(records, pick, protocol))
        assert intervals.keys() == scores.keys()
        for name, (low, high) in intervals.items():
            assert 0 <= low <= scores[name] <= high <= 100
        overall, mean, *_ = intervals.values()
        assert overall[0] < overall[1]
        assert mean[0] < mean[1]


def tables_of(report):
    """Header and rows of every table, by the header's first cell."""
    tables = {}
    lines = report.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not above.startswith("|"):
                title = cells[0]
                assert title not in tables
                tables[title] = []
            tables[title].append(cells)
    return tables


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_report_has_a_table_for_every_breakdown(protocol, by_convention):
    left = by_convention[protocol]
    tables = tables_of(left.report)
    assert list(tables) == [groups.title for groups in BREAKDOWNS.values()]
    mean = PROTOCOLS[protocol].mean_name
    for name, groups in BREAKDOWNS.items():
        header, _, *rows = tables[groups.title]
        shown = {row[0]: dict(zip(header[1:], map(float, row[1:]), strict=True)) for row in rows}
        assert shown == left.breakdowns[name]
        assert ("P@0.5 guided" in header) == (protocol != "lisa")
        last = list(shown)[-1]
        assert last == "all" or len(shown) == 1
        assert shown[last]["n"] == left.counts["sentences"]
        assert shown[last][f"{mean} guided"] == round(left.scores["guided"][mean], 2)
        if len(shown) > 1:
            parts = [row["n"] for group, row in shown.items() if group != "all"]
            assert sum(parts) == left.counts["sentences"]


def test_program_prints_the_first_table_alone(given, tmp_path, capsys):
    capsys.readouterr()
    run(given(tmp_path))
    assert list(tables_of(capsys.readouterr().out)) == ["kind"]


# Datasets.


@pytest.fixture
def phrasecut(given, tmp_path):
    """Arguments for a small PhraseCut, with the bundled weights."""
    mini_phrasecut().write(tmp_path / "data" / "phrasecut")
    data = ["--dataset", "phrasecut", "--weights", "tiny", "--refer_data_root", tmp_path / "data"]

    def build(*more):
        return given(tmp_path, *data, *more)

    return build


@pytest.mark.parametrize("method", METHODS)
def test_phrasecut_on_its_annotated_objects(method, phrasecut, tmp_path):
    more = ["--method", method, "--proposals", "gt", "--protocol", "phrasecut"]
    run(phrasecut(*more, "--sam_checkpoint", tmp_path / "none"))
    records, summary = records_of(tmp_path), summary_of(tmp_path)
    assert [record.ref_id for record in records] == [t["task_id"] for t in mini_phrasecut().tasks]
    assert {record.num_proposals for record in records} == {3}
    assert [record.kind for record in records] == ["seen"] * 3 + ["unseen"] * 6
    # A phrase for one object has its truth among the proposals; one for several has not.
    assert [record.best_iou == 1 for record in records] == [True] * 3 + [False] * 6
    kinds = summary["breakdowns"]["kind"]
    assert {kind: row["n"] for kind, row in kinds.items()} == {"seen": 3, "unseen": 6, "all": 9}
    tables = tables_of((tmp_path / "run" / "report.md").read_text())
    assert [row[:2] for row in tables["kind"][2:]] == [["seen", "3"], ["unseen", "6"], ["all", "9"]]
    (problem,) = summary["warnings"]
    assert problem.startswith("Not the whole of phrasecut val")


def test_phrasecut_on_masks_of_a_file_and_in_shards(phrasecut, tmp_path):
    image_ids = dict.fromkeys(task["image_id"] for task in mini_phrasecut().tasks)
    boxes = [box(8, 16, 33, 49), box(56, 16, 81, 49), box(30, 0, 60, 9)]
    masks = {i: boxes[: 3 - place] for place, i in enumerate(image_ids)}
    path = write_masks(tmp_path / "masks.json", masks)
    run(phrasecut("--proposals", f"coco:{path}"))
    records = records_of(tmp_path)
    assert [record.num_proposals for record in records] == [3, 2, 1] * 3
    assert [record.best_iou for record in records[:3]] == [1, 1, 1]
    content = content_of(tmp_path)
    for index in (2, 1):
        output = ["--output", tmp_path / "shards" / "run"]
        run(phrasecut("--proposals", f"coco:{path}", "--shard", f"{index}/2", *output))
    assert content_of(tmp_path / "shards") == content


def test_phrasecut_has_settings_of_sam_of_its_own(phrasecut, tmp_path, monkeypatch):
    described = prepared(phrasecut()).settings["proposals"]
    assert described["points_per_side"] == PROPOSALS_PHRASECUT.points_per_side == 64
    # With few prompts, so that SAM takes a moment only.
    few = "evaluation.methods.proposal_config_from_arguments"
    monkeypatch.setattr(few, lambda _: PROPOSALS_SHAPES)
    run(phrasecut())
    assert max(record.best_iou for record in records_of(tmp_path)) > 0.5


def test_tables_of_the_report_are_markdown(phrasecut, tmp_path):
    """Nine samples: the column n has one digit. A delimiter of the table needs a hyphen."""
    run(phrasecut("--proposals", "gt"))
    for header, delimiters, *_ in tables_of((tmp_path / "run" / "report.md").read_text()).values():
        assert len(header) == len(delimiters)
        assert [cell for cell in delimiters if not re.fullmatch(r":?-+:?", cell)] == []


@pytest.mark.parametrize("method", METHODS)
def test_own_file_in_coco_form(method, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "birds.json"
    path.write_text(json.dumps(custom_coco()))
    write_images(tmp_path / "images", ["a.jpg", "b.jpg"])
    argv = given(tmp_path, "--dataset", path, "--weights", "tiny", "--proposals", "gt")
    at = argv.index("--output")
    run([*argv[:at], *argv[at + 2 :], "--method", method])
    mode = "G2L" if method == "hybridgl" else method
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith(f"birds-all-{mode}-reference")
    records = read_records(folder / "records.jsonl")
    assert [(r.ref_id, r.num_proposals) for r in records] == [(10, 2), (10, 2), ("twelve", 1)]
    assert {record.dataset for record in records} == {"birds"}
    assert {record.best_iou for record in records} == {1.0}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["warnings"] == []
    assert "published" not in (folder / "report.md").read_text()


def test_own_folder_in_refer_form_gives_the_records_of_the_dataset(refcoco, given, tmp_path):
    run(refcoco(tmp_path / "named", "--proposals", "gt"))
    mini_refer("refcoco").write(tmp_path / "data")
    folder = (tmp_path / "data" / "refcoco").rename(tmp_path / "birds")
    (tmp_path / "data" / "images/mscoco/images/train2014").rename(folder / "images")
    own = ["--dataset", folder, "--split", "val", "--weights", "tiny", "--proposals", "gt"]
    run(given(tmp_path / "own", *own))
    named, by_path = records_of(tmp_path / "named"), records_of(tmp_path / "own")
    assert {record.dataset for record in by_path} == {"birds"}
    relabelled = [json.loads(r.to_json()) | {"dataset": "refcoco"} for r in by_path]
    assert relabelled == [json.loads(record.to_json()) for record in named]
    assert summary_of(tmp_path / "own")["warnings"] == []


def test_own_folder_with_one_split_needs_no_more_than_its_path(given, tmp_path):
    mini_refer("refcoco").write(tmp_path / "data")
    folder = (tmp_path / "data" / "refcoco").rename(tmp_path / "birds")
    (tmp_path / "data" / "images/mscoco/images/train2014").rename(folder / "images")
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    (folder / "refs(unc).p").unlink()
    only = [ref for ref in refs if ref["split"] == "testB"]
    (folder / "refs(mine).json").write_text(json.dumps(only))
    run(given(tmp_path, "--dataset", folder, "--weights", "tiny", "--proposals", "gt"))
    settings = summary_of(tmp_path)["settings"]
    assert (settings["dataset"], settings["split"], settings["split_by"]) == (
        "birds",
        "testB",
        "mine",
    )
