"""``hybridgl doctor``: planted image_errors, each told with the one command that fixes it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shlex
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import hybridgl.doctor
import refer.doctor
import refer.splits
import save_attn_gem
from hybridgl.cli import main
from hybridgl.downloads import catalogue, command
from hybridgl.downloads.catalogue import ITEMS
from hybridgl.store import Store
from hybridgl.weights import manifest
from hybridgl.weights.registry import CLIP_FILES, WeightsFile
from refer.shapes import world as shapes_world
from refer.splits import ExpectedCounts
from tests.misbehaving_server import MisbehavingServer
from tests.refer_factories import HW, mini_phrasecut, mini_refer

ROOT = Path(__file__).parents[2]
READ_CARRIED = hybridgl.doctor._npz
SMALL = {
    "shapes": refer.splits.SPLITS["shapes"],
    "refcoco": {
        "unc": dict.fromkeys(("val", "testA"), ExpectedCounts(6, 3, 15, sentences_checked=True)),
        "google": {"val": ExpectedCounts(6, 3)},
    },
    "refcocog": {"umd": {"val": ExpectedCounts(6, 3, 15)}},
    "phrasecut": {"-": dict.fromkeys(("val", "test"), ExpectedCounts(9, 3))},
}
"""The counts of the small folders."""


@dataclass(frozen=True)
class Report:
    """What the doctor said, in both forms."""

    status: int
    text: str
    checks: list[dict[str, str]]
    counts: dict[str, int]

    def named(self, name: str) -> dict[str, str]:
        (check,) = [check for check in self.checks if check["name"] == name]
        return check

    def of(self, *statuses: str, group: str | None = None) -> dict[str, dict[str, str]]:
        return {
            check["name"]: check
            for check in self.checks
            if check["status"] in statuses and group in (None, check["group"])
        }


def leave_free(monkeypatch, size):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the doctor is asked: nothing there, no published source within reach."""
    folder = tmp_path / "my folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HYBRIDGL_WEIGHTS", str(folder / "weights"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    leave_free(monkeypatch, 10**12)
    # Reading the bundled weights takes most of the time of a small report.
    monkeypatch.setattr(hybridgl.doctor, "_npz", lambda _: [])
    for place in (refer.splits, refer.doctor):
        monkeypatch.setattr(place, "SPLITS", SMALL)
    return folder


def snapshot(root):
    return {
        path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in (root, *root.rglob("*"))
    }


@pytest.fixture
def doctor(folder, capsys):
    """Asks in both forms, which must tell the same and write nothing; returns the report."""

    def ask(*argv: str) -> Report:
        before = snapshot(folder)
        capsys.readouterr()
        status = main(["doctor", *argv])
        text = capsys.readouterr()
        assert main(["doctor", "--json", *argv]) == status
        told = capsys.readouterr()
        assert (text.err, told.err) == ("", "")
        assert snapshot(folder) == before
        report = Report(status, text.out, **json.loads(told.out))
        assert_consistent(report)
        return report

    return ask


def assert_consistent(report):
    statuses = {"ok": "ok", "optional": "not there", "missing": "missing", "wrong": "wrong"}
    lines = [" ".join(line.split()) for line in report.text.splitlines()]
    told = [line for line in lines if line.startswith("-> ")]
    assert told == [f"-> {' '.join(c['fix'].split())}" for c in report.checks if c["fix"]]
    for check in report.checks:
        line = f"{statuses[check['status']]} {check['name']} {check['found']}"
        line += f" (expected: {check['expected']})" if check["expected"] else ""
        assert " ".join(line.split()) in lines
        if check["status"] in ("missing", "wrong"):
            assert check["fix"]
            assert "\n" not in check["fix"]
        if check["status"] == "ok":
            assert not check["fix"]
    assert report.counts == {s: [c["status"] for c in report.checks].count(s) for s in statuses}
    assert f"{report.counts['wrong']} wrong, {report.counts['missing']} missing" in lines[-1]
    assert report.status == int(report.counts["wrong"] > 0)


@pytest.fixture
def server():
    with MisbehavingServer() as running:
        yield running


def zipped(place, members):
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = place.read_bytes()
    place.unlink()
    return content


@pytest.fixture
def fix(server, folder, tmp_path, monkeypatch):
    """Runs the commands of a report, with a mirror in place of the published sources."""
    nowhere = {
        name: catalogue.Item(
            name=name,
            kind=item.kind,
            about=item.about,
            files=tuple(catalogue.RemoteFile(file.name, (), file.sha256) for file in item.files),
        )
        for name, item in ITEMS.items()
    }
    monkeypatch.setattr(command, "ITEMS", nowhere)
    published = tmp_path / "published"
    mini_refer("refcoco").write(published)
    files = {f"refcoco/{path.name}": path.read_bytes() for path in published.glob("refcoco/*")}
    server.serve("/refcoco.zip", zipped(tmp_path / "zip", files))
    images = {f"train2014/{path.name}": path.read_bytes() for path in published.rglob("*.jpg")}
    server.serve("/train2014.zip", zipped(tmp_path / "zip", images))

    def run(report: Report, *statuses: str, of: str = "") -> None:
        checks = report.of(*statuses, group="data")
        lines = [check["fix"] for name, check in checks.items() if name.startswith(of)]
        assert lines
        for line in dict.fromkeys(lines):
            follow(line, server.url)

    return run


def follow(line, mirror):
    """What a shell would do with a line that the doctor tells."""
    for part in line.split(" && "):
        argv = shlex.split(part)
        if argv[0] == "hybridgl":
            assert main([*argv[1:], "--mirror", mirror]) == 0
        elif argv[:3] == ["python", "-m", "refer.shapes.world"]:
            shapes_world.main([*argv[3:], "--train", "1", "--val", "1", "--testA=1", "--testB=1"])
        elif argv[:2] == ["python", "save_attn_gem.py"]:
            assert save_attn_gem.main([*argv[2:], "--device", "cpu"]) == 0
        else:
            assert argv[0] in ("mv", "rm", "chmod")
            subprocess.run(argv, check=True)


# A fresh clone


def test_fresh_clone_lacks_things_but_nothing_is_wrong(doctor):
    report = doctor()
    assert report.status == 0
    assert set(report.of("missing", group="data")) == {"refcoco (unc)", "refcocog", "phrasecut"}
    assert set(report.of("optional", group="data")) == {"shapes", "refcoco (google)"}
    needed = report.of("missing", group="weights")
    assert {"sam-vit_h", "clip-ViT-B-16"} <= set(needed) <= {*ITEMS, "en_core_web_lg"}
    assert report.of("optional", group="store")["store"]["found"] == "no results yet"
    assert report.text.splitlines()[-1].endswith("the demo needs nothing that is missing here")


def test_commands_for_what_is_missing_name_items_and_folders(doctor):
    report = doctor("--data_root", "some data")
    for name, check in report.of("missing", "optional").items():
        if check["fix"].startswith("hybridgl"):
            _, verb, item, *rest = shlex.split(check["fix"])
            assert (verb, item) == ("download", item)
            assert item in ITEMS, name
            assert rest == (["--data_root", "some data"] if check["group"] == "data" else [])


def test_commands_for_what_is_missing_get_it(doctor, fix):
    fix(doctor(), "missing", of="refcoco (unc)")
    report = doctor()
    assert report.named("refcoco (unc) val images")["found"].startswith("3 missing, first: ")
    fix(report, "missing", of="refcoco (unc)")
    report = doctor()
    for split in ("val", "testA"):
        assert report.named(f"refcoco (unc) {split}")["found"] == "6 refs, 3 images, 15 sentences"
        assert report.named(f"refcoco (unc) {split} images")["found"] == "3 in place"


def test_empty_folders_are_like_missing_ones(doctor, folder):
    (folder / "refer/data").mkdir(parents=True)
    (folder / "store").mkdir()
    (folder / "weights").mkdir()
    report = doctor()
    assert report.status == 0
    assert set(report.of("missing", group="data")) == {"refcoco (unc)", "refcocog", "phrasecut"}
    assert not [check for check in report.checks if check["group"] == "store"]


# Faults in data of REFER form


@pytest.fixture
def data(folder):
    root = folder / "refer/data"
    mini_refer("refcoco").write(root)
    return root


def images_of(data):
    """Those of the split val, in its order."""
    return [data / "images/mscoco/images/train2014" / name for name in val_names(data)]


def val_names(data):
    instances = json.loads((data / "refcoco/instances.json").read_text())
    return [image["file_name"] for image in instances["images"][:3]]


def first_image_cut_short(data):
    path = images_of(data)[0]
    path.write_bytes(path.read_bytes()[:-100])


def image_of_another_size(data):
    Image.new("RGB", (HW[1] // 2, HW[0])).save(images_of(data)[1])


def image_missing(data):
    images_of(data)[2].unlink()


def one_image_of_each_fault(data):
    for plant in (first_image_cut_short, image_of_another_size, image_missing):
        plant(data)


def refs_cut_short(data):
    path = data / "refcoco/refs(unc).p"
    path.write_bytes(path.read_bytes()[:-200])


def refs_that_run_code(data):
    class Unsafe:
        def __reduce__(self):
            return (Path.touch, (data / "it was run",))

    (data / "refcoco/refs(unc).p").write_bytes(pickle.dumps(Unsafe()))


def ref_that_is_gone(data):
    path = data / "refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(refs[1:], 2))


def instances_cut_short(data):
    path = data / "refcoco/instances.json"
    path.write_text(path.read_text()[:-200])


def changed_instances(data, change):
    path = data / "refcoco/instances.json"
    instances = json.loads(path.read_text())
    change(instances)
    path.write_text(json.dumps(instances))


def annotation_without_polygon(data):
    changed_instances(data, lambda it: it["annotations"][0].update(segmentation=[]))


def annotation_with_half_a_point(data):
    changed_instances(data, lambda it: it["annotations"][0].update(segmentation=[[1, 2, 3]]))


def image_that_is_not_listed(data):
    changed_instances(data, lambda it: it["images"].pop(0))


def sentences_that_are_gone(data):
    path = data / "refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    refs[0].update(sentences=[], sent_ids=[])
    path.write_bytes(pickle.dumps(refs, 2))


def folder_in_place_of_refs(data):
    (data / "refcoco/refs(unc).p").unlink()
    (data / "refcoco/refs(unc).p").mkdir()


def file_in_place_of_the_dataset(data):
    shutil.rmtree(data / "refcoco")
    (data / "refcoco").write_text("something else")


FAULTS = {
    image_missing: ("refcoco (unc) val images", "missing", "1 missing, first: ", "3 whole ones"),
    first_image_cut_short: ("refcoco (unc) val images", "wrong", "1 damaged, first", "3 whole"),
    image_of_another_size: (
        "refcoco (unc) val images",
        "wrong",
        "1 of another size than annotated, first: ",
        "of the annotated size",
    ),
    one_image_of_each_fault: (
        "refcoco (unc) val images",
        "wrong",
        "1 missing, 1 damaged, 1 of another size than annotated",
        "3 whole ones",
    ),
    refs_cut_short: ("refcoco (unc)", "wrong", "Expected a whole pickle in", ""),
    refs_that_run_code: ("refcoco (unc)", "wrong", "which was refused and not run", ""),
    ref_that_is_gone: ("refcoco (unc) val", "wrong", "5 refs, 3 images, 12 sent", "6 refs, 15"),
    instances_cut_short: ("refcoco (unc)", "wrong", "Expected whole JSON in", ""),
    annotation_without_polygon: (
        "refcoco (unc) val refs without mask",
        "wrong",
        "1 of 6 refs without mask",
        "none",
    ),
    annotation_with_half_a_point: (
        "refcoco (unc) val refs with a broken mask",
        "wrong",
        "1 of 6 refs with a broken mask, first: Annotation 1700000",
        "none",
    ),
    image_that_is_not_listed: ("refcoco (unc) val", "wrong", "which it lacks", ""),
    sentences_that_are_gone: (
        "refcoco (unc) val refs without sentences",
        "wrong",
        "1 of 6 refs without sentences",
        "none",
    ),
    folder_in_place_of_refs: ("refcoco (unc)", "missing", "neither ", "refs(unc).p"),
    file_in_place_of_the_dataset: ("refcoco (unc)", "missing", "no folder ", "instances.json"),
}


@pytest.mark.parametrize("archives", ["kept", "deleted"])
@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_fault_is_told_and_its_command_mends_it(
    doctor, data, fix, server, folder, plant, archives
):
    if archives == "kept":
        shutil.rmtree(data)
        argv = ["download", "refcoco", "coco-train2014", "--mirror", server.url]
        assert main(argv) == 0
        assert (data / "downloads/refcoco.zip").is_file()
    plant(data)
    name, status, found, expected = FAULTS[plant]
    report = doctor()
    check = report.named(name)
    assert check["status"] == status
    assert found in check["found"]
    assert expected in check["expected"]
    assert not (data / "it was run").exists()
    fix(report, "missing", "wrong", of="refcoco (unc)")
    again = doctor()
    assert again.status == 0
    checks = [check for check in again.checks if check["name"].startswith("refcoco (unc)")]
    assert {check["status"] for check in checks} == {"ok"}
    assert len(checks) == 4


def test_one_fault_does_not_hide_the_other_splits(doctor, data):
    first_image_cut_short(data)
    ref_that_is_gone(data)
    report = doctor()
    assert set(report.of("wrong")) == {"refcoco (unc) val", "refcoco (unc) val images"}
    assert set(report.of("ok", group="data")) == {
        "refcoco (unc) testA",
        "refcoco (unc) testA images",
        "free disk",
    }


def test_many_damaged_images_go_with_their_folder(doctor, data, fix, monkeypatch):
    monkeypatch.setattr(refer.doctor, "_MANY", 2)
    for path in images_of(data):
        path.write_bytes(b"no image")
    report = doctor()
    check = report.named("refcoco (unc) val images")
    assert check["found"].startswith("3 damaged, first: ")
    assert check["fix"].startswith("mv refer/data/images/mscoco/images/train2014 refer/")
    fix(report, "wrong")
    assert doctor().named("refcoco (unc) val images")["found"] == "3 in place"


def test_sentence_count_that_nobody_vouches_for_is_no_fault(doctor, folder):
    mini = mini_refer("refcocog")
    mini.refs[0]["sentences"].pop()
    mini.refs[0]["sent_ids"].pop()
    mini.write(folder / "refer/data")
    report = doctor()
    check = report.named("refcocog val")
    assert (report.status, check["status"]) == (0, "ok")
    assert check["found"] == "6 refs, 3 images, 14 sentences"
    assert check["expected"] == "15 sentences, a number that is quoted, but unchecked"


def test_refs_of_the_other_author_are_looked_at_by_themselves(doctor, data):
    shutil.copy(data / "refcoco/refs(unc).p", data / "refcoco/refs(google).p")
    assert doctor().named("refcoco (google) val")["status"] == "ok"


# PhraseCut


@pytest.fixture
def phrasecut(folder):
    mini = mini_phrasecut()
    for split in ("val", "test"):
        mini.write(folder / "refer/data/phrasecut", split)
    return folder / "refer/data/phrasecut"


def test_whole_phrasecut_is_well(doctor, phrasecut):
    report = doctor()
    assert set(report.of("ok", group="data")) >= {
        *("phrasecut val", "phrasecut val images", "phrasecut test", "phrasecut test images")
    }
    assert report.named("phrasecut val")["found"] == "9 refs, 3 images, 9 sentences"


def test_damaged_phrasecut_is_fetched_again(doctor, phrasecut, fix, server):
    whole = {path.name: path.read_bytes() for path in phrasecut.glob("*.json")}
    for name in ("refer_train.json", "refer_miniv.json"):
        whole[name] = b"[]"
    for name, content in whole.items():
        server.serve(f"/{name}", content)
    path = phrasecut / "refer_val.json"
    path.write_bytes(whole[path.name][:-50])
    report = doctor()
    check = report.named("phrasecut val")
    assert check["status"] == "wrong"
    assert "cut short" in check["found"]
    assert report.named("phrasecut test")["status"] == "ok"
    follow(check["fix"], server.url)
    report = doctor()
    assert report.status == 0
    assert report.named("phrasecut val")["status"] == "ok"


def test_split_of_phrasecut_that_was_not_fetched_is_missing(doctor, phrasecut):
    (phrasecut / "refer_test.json").unlink()
    report = doctor()
    assert report.status == 0
    assert report.named("phrasecut test")["status"] == "missing"
    assert report.named("phrasecut val")["status"] == "ok"


def test_damaged_phrasecut_is_wrong_where_its_other_splits_are_missing(doctor, phrasecut):
    (phrasecut / "refer_test.json").unlink()
    (phrasecut / "refer_val.json").write_text("[")
    report = doctor()
    assert report.named("phrasecut val")["status"] == "wrong"
    assert report.named("phrasecut test")["status"] == "missing"


# The shapes world


@pytest.fixture
def shapes(folder, world):
    return Path(shutil.copytree(world, folder / "refer/data"))


def test_world_with_empty_splits_is_well(doctor, shapes):
    report = doctor()
    assert report.named("shapes val")["status"] == "ok"
    assert report.named("shapes train")["found"] == "no images, as the world was written"
    assert not report.of("wrong", "missing").keys() & {"shapes", "shapes train", "shapes val"}


def pixel_that_changed(root):
    path = next((root / "images/shapes").iterdir())
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def shapes_refs_cut_short(root):
    path = root / "shapes/refs(synthetic).p"
    path.write_bytes(path.read_bytes()[:-50])


def shapes_refs_deleted(root):
    (root / "shapes/refs(synthetic).p").unlink()


def manifest_deleted(root):
    (root / "shapes/world.json").unlink()


def manifest_cut_short(root):
    path = root / "shapes/world.json"
    path.write_text(path.read_text()[:50])


@pytest.mark.parametrize(
    "plant",
    [
        pixel_that_changed,
        shapes_refs_cut_short,
        shapes_refs_deleted,
        manifest_deleted,
        manifest_cut_short,
    ],
)
def test_damaged_world_is_told_and_its_command_mends_it(doctor, shapes, fix, plant):
    plant(shapes)
    report = doctor()
    wrong = report.of("wrong")
    assert set(wrong) == {"shapes files"}
    assert wrong["shapes files"]["expected"]
    fix(report, "wrong")
    again = doctor()
    assert again.status == 0
    assert again.named("shapes val images")["status"] == "ok"


# Weights


def test_damaged_weights_with_a_published_name_are_told_with_both_checksums(doctor, folder):
    (folder / "weights").mkdir()
    (folder / "weights/ViT-B-16.pt").write_bytes(b"half of it")
    check = doctor().named("clip-ViT-B-16")
    assert check["status"] == "wrong"
    assert hashlib.sha256(b"half of it").hexdigest()[:12] in check["found"]
    assert check["expected"] == f"sha256 {CLIP_FILES['ViT-B-16'].sha256[:12]}"
    assert check["fix"] == "hybridgl download clip-ViT-B-16"


@pytest.mark.parametrize("place", ["damaged file", "folder"])
def test_wrong_weights_are_fetched_again(doctor, folder, fix, server, monkeypatch, place):
    sha256 = hashlib.sha256(b"the weights").hexdigest()
    file = WeightsFile("clip-RN50", "RN50.pt", "", sha256)
    item = catalogue.Item(
        name="clip-RN50",
        kind=catalogue.Kind.WEIGHTS,
        about="",
        files=(catalogue.RemoteFile(file.name, (), sha256),),
    )
    monkeypatch.setattr(hybridgl.doctor, "_PUBLISHED", (file,))
    monkeypatch.setattr(command, "ITEMS", {**command.ITEMS, "clip-RN50": item})
    server.serve("/RN50.pt", b"the weights")
    path = folder / "weights/RN50.pt"
    path.mkdir(parents=True) if place == "folder" else path.parent.mkdir()
    if place != "folder":
        path.write_bytes(b"damaged")
    report = doctor()
    assert report.status == 1
    check = report.named("clip-RN50")
    assert check["status"] == "wrong"
    follow(check["fix"], server.url)
    assert doctor().named("clip-RN50")["status"] == "ok"


@pytest.mark.parametrize("error", ["gone", "cut short", "flipped", "without spaCy"])
def test_damaged_carried_weights_are_told(doctor, tmp_path, monkeypatch, error):
    monkeypatch.setattr(hybridgl.doctor, "_npz", READ_CARRIED)
    tiny = Path(shutil.copytree(manifest._TINY, tmp_path / "tiny"))
    monkeypatch.setattr(manifest, "_TINY", tiny)
    assert doctor().named("tiny (bundled)")["status"] == "ok"
    path = tiny / "clip.npz"
    content = bytearray(path.read_bytes())
    if error == "gone":
        path.unlink()
    elif error == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif error == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        shutil.rmtree(tiny / "spacy")
    check = doctor().named("tiny (bundled)")
    assert check["status"] == "wrong"
    assert str(tiny) in check["found"]
    assert check["fix"] == f"git -C {ROOT} checkout -- hybridgl/weights/tiny"


# Store


@pytest.fixture
def store(folder):
    store = Store(folder / "store")
    for number in range(4):
        key = hashlib.sha256(bytes([number])).hexdigest()
        store.save("features", key, {"x": np.arange(number + 3)}, {"n": number})
    return folder / "store"


def test_whole_store_is_well(doctor, store):
    check = doctor().named("features")
    assert (check["status"], check["found"]) == ("ok", "4 entries, 0.0 MB")


def test_damaged_entries_are_told_and_removed_by_the_command(doctor, store):
    whole, flipped, cut, emptied = sorted(store.rglob("*.safetensors"))
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 4
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-3])
    emptied.write_bytes(b"")
    check = doctor().named("features")
    assert check["status"] == "wrong"
    assert (
        f"4 entries, 0.0 MB; 3 damaged, first: store/{flipped.relative_to(store)}"
        == (check["found"])
    )
    follow(check["fix"], "")
    assert sorted(store.rglob("*.safetensors")) == [whole]
    assert doctor().named("features")["found"] == "1 entries, 0.0 MB"


def test_what_killed_runs_left_in_the_store_stays(doctor, store):
    """Programs that open the store sweep it."""
    partial = next(store.rglob("*.safetensors")).with_name(".00000000-1-00000000.partial")
    partial.write_bytes(b"half")
    os.utime(partial, (0, 0))
    doctor()
    assert partial.exists()


# Places that are none


@pytest.mark.parametrize("place", ["refer/data", "store", "weights"])
@pytest.mark.parametrize("obstacle", ["file", "file above", "link to nowhere"])
def test_place_that_is_no_folder_is_told(doctor, folder, place, obstacle):
    path = folder / (Path(place).parts[0] if obstacle == "file above" else place)
    path.parent.mkdir(exist_ok=True)
    if obstacle == "link to nowhere":
        path.symlink_to("nowhere")
    else:
        path.write_text("a file")
    more = ["--store", "store/deeper"] if (place, obstacle) == ("store", "file above") else []
    report = doctor(*more)
    (check,) = report.of("wrong").values()
    assert check["found"] == f"{path} is no folder"
    assert check["expected"] == "a folder"
    follow(check["fix"], "")
    assert doctor(*more).status == 0


def test_moving_away_does_not_overwrite_what_was_moved_before(doctor, folder):
    for content in ("first", "second"):
        (folder / "store").write_text(content)
        (check,) = doctor().of("wrong").values()
        follow(check["fix"], "")
    assert (folder / "store.old").read_text() == "first"
    assert (folder / "store.old1").read_text() == "second"


@pytest.mark.parametrize("place", ["refer/data", "store", "weights"])
def test_folder_that_cannot_be_read_is_told(doctor, folder, monkeypatch, place):
    path = folder / place
    path.mkdir(parents=True)
    may = os.access
    monkeypatch.setattr(
        os, "access", lambda at, *rest: Path(at).absolute() != path and may(at, *rest)
    )
    report = doctor()
    (check,) = report.of("wrong").values()
    assert check["found"] == f"{path} cannot be read"
    assert shlex.split(check["fix"]) == ["chmod", "-R", "u+rwX", str(path)]


def test_file_that_cannot_be_read_is_told_and_the_rest_is_looked_at(doctor, data, monkeypatch):
    denied = data / "refcoco/instances.json"

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(denied))

    monkeypatch.setattr(refer.doctor, "load_refer_splits", refuse)
    report = doctor()
    check = report.named("refcoco")
    assert check["status"] == "wrong"
    assert "Permission denied" in check["found"]
    assert shlex.split(check["fix"]) == ["chmod", "-R", "u+rwX", str(denied)]
    assert report.named("phrasecut")["status"] == "missing"
    assert report.of("optional", group="store")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize(
    "place",
    [
        ".",
        "refcoco",
        "refcoco/refs(unc).p",
        "images",
        "images/mscoco/images/train2014",
        "../../store",
        "../../store/features",
        "a shard",
        "../../weights",
        "../../weights/RN50.pt",
    ],
)
def test_place_that_may_not_be_read_is_told(folder, data, store, capsys, place):
    (folder / "weights").mkdir()
    (folder / "weights/RN50.pt").touch()
    path = data / place
    if place == "a shard":
        path = next((store / "features").iterdir())
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        assert main(["doctor", "--json"]) == 1
        checks = json.loads(capsys.readouterr().out)["checks"]
        lines = {check["fix"] for check in checks if "chmod" in check["fix"]}
        assert len(lines) == 1
        follow(*lines, "")
        main(["doctor", "--json"])
    finally:
        path.chmod(mode)
    checks = json.loads(capsys.readouterr().out)["checks"]
    wrong = [check["name"] for check in checks if check["status"] == "wrong"]
    assert wrong == ["clip-RN50"]  # an empty file


def test_surprise_in_one_split_leaves_the_others(folder, data, phrasecut, monkeypatch, capsys):
    find_image_errors = refer.doctor.find_image_errors

    def stumble(split):
        if (split.dataset, split.split) == ("refcoco", "val"):
            raise RuntimeError("a surprise\nof two lines")
        return find_image_errors(split)

    monkeypatch.setattr(refer.doctor, "find_image_errors", stumble)
    assert main(["doctor"]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    told = "cannot be looked at, RuntimeError: a surprise of two lines"
    assert any(line.startswith(f"wrong refcoco (unc) val {told}") for line in lines)
    for name in ("refcoco (unc) testA images", "phrasecut val images"):
        assert f"ok {name} 3 in place" in lines
    assert "not there store no results yet" in lines


# Software and disk


def test_package_that_is_missing_is_told_with_this_python(doctor, monkeypatch):
    version = hybridgl.doctor.version

    def without(name):
        if name == "segment-anything":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(hybridgl.doctor, "version", without)
    report = doctor()
    check = report.named("segment-anything")
    assert (check["status"], check["expected"]) == ("missing", "installed")
    assert check["fix"].endswith("python -m pip install segment-anything")
    assert "the demo needs nothing" not in report.text


def test_little_disk_is_told_where_it_is_needed(doctor, folder, monkeypatch):
    leave_free(monkeypatch, 10**9)
    lines = [check for check in doctor().checks if check["name"] == "free disk"]
    assert [check["status"] for check in lines] == ["missing", "missing"]
    assert [check["found"].split(" for ")[0] for check in lines] == ["1.0 GB", "1.0 GB"]
    assert [check["expected"].split(" for ")[0] for check in lines] == ["4 GB", "20 GB"]


def test_little_disk_is_enough_where_all_data_is_there(doctor, data, phrasecut, monkeypatch):
    mini_refer("refcocog").write(data)
    mini_refer("refcoco").write(data)
    leave_free(monkeypatch, 10**9)
    disk = [check for check in doctor().checks if check["name"] == "free disk"][1]
    assert (disk["status"], disk["expected"]) == ("ok", "")


# What lies beside the library


def test_suite_that_cannot_be_imported_is_told(doctor, monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'tqdm'")

    monkeypatch.setattr(hybridgl.doctor.importlib, "import_module", fail)
    report = doctor()
    (check,) = [check for check in report.checks if check["group"] == "data"]
    assert (report.status, check["status"]) == (1, "wrong")
    assert "No module named 'tqdm'" in check["found"]
    assert check["fix"].endswith(f"-m pip install -e {ROOT}")


def test_library_outside_a_clone_says_what_it_cannot_look_at(doctor, monkeypatch, tmp_path):
    monkeypatch.setattr(hybridgl.doctor, "_ROOT", tmp_path)
    report = doctor()
    (check,) = [check for check in report.checks if check["group"] == "data"]
    assert (report.status, check["status"]) == (0, "optional")
    assert check["found"].startswith("not looked at: that code is in the repository")
    assert check["fix"] == "make demo, in a clone of the repository"
