"""The doctor of datasets and the store: planted faults, each fixed by the one command it names."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import refer.doctor
import refer.splits
from hybridgl.download import RemoteFile
from hybridgl.store import Store
from refer.__main__ import main
from refer.doctor import data_checks, store_checks
from refer.download import ARCHIVES
from refer.shapes import world
from refer.splits import ExpectedCounts
from tests.misbehaving_server import MisbehavingServer
from tests.refer_factories import HW, mini_phrasecut, mini_refer

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


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root that is not there yet, where the datasets are small and not published."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    for module in (refer.splits, refer.doctor, refer.download):
        monkeypatch.setattr(module, "SPLITS", SMALL)
    for item, files in ARCHIVES.items():
        monkeypatch.setitem(ARCHIVES, item, tuple(RemoteFile(file.name) for file in files))
    return tmp_path / "my data"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with MisbehavingServer() as running:
        yield running


@pytest.fixture
def archives(server, tmp_path):
    """RefCOCO's on a server; returns its address."""
    published = tmp_path / "published"
    mini_refer("refcoco").write(published)
    for name, paths in (
        ("refcoco", [*published.glob("refcoco/*")]),
        ("train2014", [*published.rglob("*.jpg")]),
    ):
        with zipfile.ZipFile(tmp_path / "packing", "w") as archive:
            for path in paths:
                archive.write(path, f"{name}/{path.name}")
        server.serve(f"/{name}.zip", (tmp_path / "packing").read_bytes())
    return server.url


def checks(root):
    return {check.name: check for check in data_checks(root)}


def follow(fix, mirror=""):
    """What a shell would do with a command that the doctor names."""
    for command in fix.split(" && "):
        argv = shlex.split(command)
        if argv[:3] == ["python", "-m", "refer"]:
            assert main([*argv[3:], "--mirror", mirror]) == 0
        elif argv[:3] == ["python", "-m", "refer.shapes.world"]:
            sizes = ["--train=0", "--val=2", "--testA=0", "--testB=0"]
            world.main([*argv[3:], *([] if "--val=2" in argv else sizes)])
        else:
            assert argv[0] in ("mv", "rm")
            subprocess.run(argv, check=True)


def test_fresh_clone_lacks_data_but_nothing_is_wrong(root, capsys):
    found = checks(root)
    assert {name: check.status for name, check in found.items()} == {
        "shapes": "ok",
        "refcoco (unc)": "missing",
        "refcocog": "missing",
        "phrasecut": "missing",
        "free disk": "ok",
    }
    assert shlex.split(found["refcocog"].fix) == [
        *("python", "-m", "refer", "download", "refcocog", "--data_root", str(root))
    ]
    root.mkdir()
    assert checks(root).keys() == found.keys()
    assert main(["doctor", "--data_root", str(root), "--store", "none"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "none no results yet" in " ".join(printed.out.split())
    assert printed.out.splitlines()[-1].startswith("0 wrong, 3 missing; the shapes world needs")
    assert not Path("none").exists()


def test_commands_for_what_is_missing_fetch_it(root, archives):
    follow(checks(root)["refcoco (unc)"].fix, archives)
    images = checks(root)["refcoco (unc) val images"]
    assert images.found.startswith("3 missing, first: ")
    follow(images.fix, archives)
    found = checks(root)
    for split in ("val", "testA"):
        assert found[f"refcoco (unc) {split}"].found == "6 refs, 3 images, 15 sentences"
        assert found[f"refcoco (unc) {split} images"].found == "3 in place"


# Faults in data of REFER form


@pytest.fixture
def data(root):
    mini_refer("refcoco").write(root)
    return root


def images_of(data):
    """Those of the split val, in its order."""
    images = json.loads((data / "refcoco/instances.json").read_text())["images"]
    return [data / "images/mscoco/images/train2014" / image["file_name"] for image in images[:3]]


def changed_refs(data, change):
    path = data / "refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    change(refs)
    path.write_bytes(pickle.dumps(refs, 2))


def changed_instances(data, change):
    path = data / "refcoco/instances.json"
    instances = json.loads(path.read_text())
    change(instances)
    path.write_text(json.dumps(instances))


def image_missing(data):
    images_of(data)[2].unlink()


def image_cut_short(data):
    path = images_of(data)[0]
    path.write_bytes(path.read_bytes()[:-100])


def image_of_another_size(data):
    Image.new("RGB", (HW[1] // 2, HW[0])).save(images_of(data)[1])


def one_image_of_each_fault(data):
    for plant in (image_missing, image_cut_short, image_of_another_size):
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
    changed_refs(data, lambda refs: refs.pop(0))


def sentences_that_are_gone(data):
    changed_refs(data, lambda refs: refs[0].update(sentences=[], sent_ids=[]))


def instances_cut_short(data):
    path = data / "refcoco/instances.json"
    path.write_text(path.read_text()[:-200])


def annotation_without_polygon(data):
    changed_instances(data, lambda it: it["annotations"][0].update(segmentation=[]))


def annotation_with_half_a_point(data):
    changed_instances(data, lambda it: it["annotations"][0].update(segmentation=[[1, 2, 3]]))


def image_that_is_not_listed(data):
    changed_instances(data, lambda it: it["images"].pop(0))


def folder_in_place_of_refs(data):
    (data / "refcoco/refs(unc).p").unlink()
    (data / "refcoco/refs(unc).p").mkdir()


def file_in_place_of_the_dataset(data):
    shutil.rmtree(data / "refcoco")
    (data / "refcoco").write_text("something else")


FAULTS = {
    image_missing: ("val images", "missing", "1 missing, first: ", "3 whole ones"),
    image_cut_short: ("val images", "wrong", "1 corrupt, first: ", "3 whole ones"),
    image_of_another_size: (
        "val images",
        "wrong",
        "1 of another size than annotated, first: ",
        "annotated size",
    ),
    one_image_of_each_fault: (
        "val images",
        "wrong",
        "1 missing, 1 corrupt, 1 of another size",
        "3 whole ones",
    ),
    refs_cut_short: ("", "wrong", "Expected a whole pickle in", ""),
    refs_that_run_code: ("", "wrong", "which was refused and not run", ""),
    ref_that_is_gone: ("val", "wrong", "5 refs, 3 images, 12 sentences", "6 refs, 15 sentences"),
    sentences_that_are_gone: (
        "val refs without sentences",
        "wrong",
        "1 of 6 refs without sentences",
        "none",
    ),
    instances_cut_short: ("", "wrong", "Expected whole JSON in", ""),
    annotation_without_polygon: (
        "val refs without mask",
        "wrong",
        "1 of 6 refs without mask",
        "none",
    ),
    annotation_with_half_a_point: (
        "val refs with a broken mask",
        "wrong",
        "broken mask, first: Annotation 1700000",
        "none",
    ),
    image_that_is_not_listed: ("val", "wrong", "got none", ""),
    folder_in_place_of_refs: ("", "missing", "neither ", ""),
    file_in_place_of_the_dataset: ("", "missing", "no folder ", ""),
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_fault_is_told_and_its_command_fixes_it(root, data, archives, plant):
    plant(data)
    name, status, found, expected = FAULTS[plant]
    told = checks(root)
    check = told[f"refcoco (unc) {name}".strip()]
    assert check.status == status
    assert found in check.found
    assert expected in check.expected
    assert not (data / "it was run").exists()
    fixes = [check.fix for name, check in told.items() if name.startswith("refcoco (unc)")]
    for fix in dict.fromkeys(filter(None, fixes)):
        follow(fix, archives)
    again = {name: check for name, check in checks(root).items() if "refcoco (unc)" in name}
    assert {check.status for check in again.values()} == {"ok"}
    assert len(again) == 4


def test_one_fault_does_not_hide_the_other_splits(root, data, monkeypatch):
    find = refer.doctor.find_image_errors

    def stumble(split):
        if split.split == "val":
            raise RuntimeError("a surprise")
        return find(split)

    monkeypatch.setattr(refer.doctor, "find_image_errors", stumble)
    ref_that_is_gone(data)
    found = list(data_checks(root))
    assert [check.found for check in found if check.name == "refcoco (unc) val"] == [
        "5 refs, 3 images, 12 sentences",
        "cannot be looked at, RuntimeError: a surprise",
    ]
    assert checks(root)["refcoco (unc) testA images"].found == "3 in place"


def test_file_that_cannot_be_read_is_told_and_the_rest_is_looked_at(root, data, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(data / "refcoco/instances.json"))

    monkeypatch.setattr(refer.doctor, "load_refer_splits", refuse)
    found = checks(root)
    assert found["refcoco"].status == "wrong"
    assert "Permission denied" in found["refcoco"].found
    assert shlex.split(found["refcoco"].fix) == ["chmod", "-R", "u+rwX", str(root)]
    assert found["phrasecut"].status == "missing"


def test_many_damaged_images_go_with_their_folder(root, data, archives, monkeypatch):
    monkeypatch.setattr(refer.doctor, "_MANY", 2)
    for path in images_of(data):
        path.write_bytes(b"no image")
    check = checks(root)["refcoco (unc) val images"]
    assert check.found.startswith("3 corrupt, first: ")
    assert shlex.split(check.fix)[:2] == ["mv", str(data / "images/mscoco/images/train2014")]
    follow(check.fix, archives)
    assert checks(root)["refcoco (unc) val images"].found == "3 in place"


def test_sentence_count_that_nobody_vouches_for_is_no_fault(root):
    mini = mini_refer("refcocog")
    mini.refs[0]["sentences"].pop()
    mini.refs[0]["sent_ids"].pop()
    mini.write(root)
    check = checks(root)["refcocog val"]
    assert (check.status, check.found) == ("ok", "6 refs, 3 images, 14 sentences")
    assert check.expected == "15 sentences, a number that is quoted, but unchecked"


def test_refs_of_the_other_author_are_looked_at_by_themselves(root, data):
    shutil.copy(data / "refcoco/refs(unc).p", data / "refcoco/refs(google).p")
    assert checks(root)["refcoco (google) val"].status == "ok"


def test_little_disk_is_told_where_data_is_missing(root, data, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    check = checks(root)["free disk"]
    assert (check.status, check.expected) == ("missing", "20 GB")
    assert check.fix.endswith("coco-train2014 --data_root LARGER_DISK")
    mini_refer("refcocog").write(root)
    mini_refer("refcoco").write(root)
    for split in ("val", "test"):
        mini_phrasecut().write(root / "phrasecut", split)
    assert checks(root)["free disk"].status == "ok"


def test_root_that_is_no_folder_is_told(root):
    root.write_text("a file")
    check, disk = checks(root).values()
    assert (check.status, check.found, disk.status) == ("wrong", f"{root} is no folder", "ok")


# PhraseCut


def test_damaged_file_of_phrasecut_is_fetched_again(root, server):
    for split in ("val", "test"):
        mini_phrasecut().write(root / "phrasecut", split)
    found = checks(root)
    assert found["phrasecut val"].found == "9 refs, 3 images, 9 sentences"
    assert {check.status for name, check in found.items() if "phrasecut" in name} == {"ok"}
    for path in (root / "phrasecut").glob("*.json"):
        server.serve(f"/{path.name}", path.read_bytes())
    path = root / "phrasecut/refer_val.json"
    path.write_bytes(path.read_bytes()[:-50])
    found = checks(root)
    assert found["phrasecut val"].status == "wrong"
    assert "fetch it again" in found["phrasecut val"].found
    assert found["phrasecut test"].status == "ok"
    follow(found["phrasecut val"].fix, server.url)
    assert checks(root)["phrasecut val"].status == "ok"
    (root / "phrasecut/refer_test.json").unlink()
    path.write_text("[")
    found = checks(root)
    assert (found["phrasecut val"].status, found["phrasecut test"].status) == ("wrong", "missing")


# The shapes world


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
def test_damaged_world_is_told_and_its_command_fixes_it(root, plant):
    world.write_world(root, seed=7, sizes={"val": 2})
    manifest = (root / "shapes/world.json").read_bytes()
    whole = checks(root)
    assert {check.status for name, check in whole.items() if "shapes" in name} == {"ok"}
    assert "shapes train" not in whole
    plant(root)
    check = checks(root)["shapes"]
    assert check.status == "wrong"
    assert check.expected
    follow(check.fix)
    assert checks(root)["shapes val images"].status == "ok"
    if "manifest" not in plant.__name__:
        assert (root / "shapes/world.json").read_bytes() == manifest


# Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    for number in range(4):
        key = hashlib.sha256(bytes([number])).hexdigest()
        store.save("features", key, {"x": np.arange(number + 3)}, {"n": number})
    return tmp_path / "store"


def test_damaged_entries_are_told_and_removed_by_the_command(store):
    (check,) = store_checks(store)
    assert (check.name, check.status, check.found) == ("features", "ok", "4 entries, 0.0 MB")
    whole, flipped, cut, emptied = sorted(store.rglob("*.safetensors"))
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 4
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-3])
    emptied.write_bytes(b"")
    partial = whole.with_name(".00000000-1-00000000.partial")
    partial.write_bytes(b"of a killed run; programs that open the store sweep it")
    (check,) = store_checks(store)
    assert check.status == "wrong"
    assert check.found == f"4 entries, 0.0 MB; 3 damaged, first: {flipped}"
    follow(check.fix)
    assert sorted(store.rglob("*.safetensors")) == [whole]
    assert partial.exists()
    (check,) = store_checks(store)
    assert check.found == "1 entries, 0.0 MB"


@pytest.mark.parametrize("place", ["my data", "my data/refcoco/refs(unc).p", "store/v2/features"])
def test_place_that_may_not_be_read_is_told(root, data, store, capsys, place):
    path, words = root.parent / place, ["doctor", "--data_root", str(root), "--store", str(store)]
    mode = path.stat().st_mode
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    try:
        assert main([*words, "--json"]) == 1
        fixes = {check["fix"] for check in json.loads(capsys.readouterr().out)["checks"]}
        (fix,) = [fix for fix in fixes if fix.startswith("chmod")]
        subprocess.run(shlex.split(fix), check=True)
        assert main(words) == 0
    finally:
        path.chmod(mode)
