"""``hybridgl download`` from end to end, with a mirror on this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile

import pytest

from hybridgl.cli import main
from hybridgl.downloads import catalogue, command
from hybridgl.downloads.catalogue import GROUPS, ITEMS, Kind
from hybridgl.weights.registry import CLIP_FILES, SAM_FILES
from tests.misbehaving_server import MisbehavingServer
from tests.refer_factories import mini_refer

CLOSING = "are not needed any more, and can be deleted"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with MisbehavingServer() as running:
        yield running


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the command runs, with nothing in it and no published source within reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYBRIDGL_WEIGHTS", str(tmp_path / "weights"))
    unpublished = {
        name: catalogue.Item(
            name=name,
            kind=item.kind,
            about=item.about,
            files=tuple(catalogue.RemoteFile(file.name, (), file.sha256) for file in item.files),
        )
        for name, item in ITEMS.items()
    }
    monkeypatch.setattr(command, "ITEMS", unpublished)
    return tmp_path


@pytest.fixture
def download(server, folder, capsys):
    """Runs the command with the mirror; returns what it printed."""

    def run(*argv, status=0):
        assert main(["download", *argv, "--mirror", f"{server.url}/mirror/"]) == status
        return capsys.readouterr()

    return run


@pytest.fixture
def refused(folder, capsys):
    """Runs the command without the mirror; returns its one line of error. Nothing is written."""

    def run(*argv):
        before = sorted(folder.rglob("*"))
        assert main(["download", *argv]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        assert sorted(folder.rglob("*")) == before
        return line

    return run


def zipped(folder, members):
    path = folder / "packing.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture
def published(server, tmp_path_factory):
    """Root of a dataset in REFER form, whose archives the mirror has."""
    root = tmp_path_factory.mktemp("published")
    mini_refer("refcoco").write(root)
    annotations = {f"refcoco/{path.name}": path.read_bytes() for path in root.glob("refcoco/*")}
    annotations |= {"refcoco/README": b"no", "__MACOSX/refcoco/._instances.json": b"no"}
    server.serve("/mirror/refcoco.zip", zipped(root, annotations))
    images = {f"train2014/{path.name}": path.read_bytes() for path in root.rglob("*.jpg")}
    images |= {"train2014/": b"", "train2014/COCO_train2014_000000000009.jpg": b"in no dataset"}
    server.serve("/mirror/train2014.zip", zipped(root, images))
    return root


def paths(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_annotations_and_the_images_that_they_name_make_the_expected_tree(
    download, folder, published
):
    printed = download("coco-train2014", "refcoco").out
    root = folder / "refer/data"
    expected = {path: (published / path).read_bytes() for path in paths(published)}
    for path, content in expected.items():
        assert (root / path).read_bytes() == content
    downloads = {f"downloads/{name}" for name in ("refcoco.zip", "train2014.zip", "checksums.json")}
    assert paths(root) == expected.keys() | downloads
    assert printed.index("refcoco.zip") < printed.index("train2014.zip")
    assert printed.splitlines()[-1] == f"the archives in refer/data/downloads {CLOSING}"


def test_again_needs_no_network(download, server, folder, published):
    download("refcoco", "coco-train2014")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    num_requests = len(server.requests)
    printed = download("refcoco", "coco-train2014").out
    assert "already there: refer/data/downloads/train2014.zip, whole" in printed
    assert "unpacked to refer/data/images/mscoco/images/train2014: 0, already there: 12" in printed
    assert len(server.requests) == num_requests
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_archives_that_were_deleted_are_not_fetched_again(download, server, folder, published):
    download("refcoco", "coco-train2014")
    shutil.rmtree(folder / "refer/data/downloads")
    num_requests = len(server.requests)
    printed = download("refcoco", "coco-train2014").out
    assert len(server.requests) == num_requests
    assert "already there: refer/data/refcoco" in printed
    assert CLOSING not in printed


def test_image_that_went_missing_comes_again(download, folder, published):
    download("refcoco", "coco-train2014")
    (lost, *_) = (folder / "refer/data").rglob("*.jpg")
    lost.unlink()
    assert "train2014: 1, already there: 11" in download("coco-train2014").out
    assert lost.is_file()


def test_archive_that_was_damaged_is_told_and_fetched_again(
    download, server, folder, published, caplog
):
    download("refcoco")
    archive = folder / "refer/data/downloads/refcoco.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-50])
    download("refcoco")
    assert archive.read_bytes() == whole
    assert "damaged" in caplog.text


def test_source_that_sends_a_damaged_archive_is_told(download, server, folder):
    server.serve("/mirror/refcoco.zip", b"PK and so on")
    line = download("refcoco", status=2).err
    assert "error: Expected a whole zip file at refer/data/downloads/refcoco.zip" in line
    assert "Delete it and run the same command again" in line


def test_archive_without_annotations_is_told(download, server, folder):
    server.serve("/mirror/refcoco.zip", zipped(folder, {"refcoco/instances.json": b"{}"}))
    line = download("refcoco", status=2).err
    assert "Expected instances.json and refs(*).p in refer/data/downloads/refcoco.zip" in line


def test_images_that_are_in_no_archive_are_told(download, server, folder, published):
    (lost, *others) = sorted(published.rglob("*.jpg"))
    images = {path.name: path.read_bytes() for path in others}
    server.serve("/mirror/train2014.zip", zipped(folder, images))
    line = download("refcoco", "coco-train2014", status=2).err
    assert "found 1 of them in no archive" in line
    assert lost.name in line
    assert len(list((folder / "refer/data").rglob("*.jpg"))) == len(others)


def test_images_before_annotations_are_refused(refused):
    line = refused("coco-train2014")
    assert "Download annotations first: `hybridgl download refcoco`" in line
    assert "refer/data/phrasecut/image_data_split.json" in refused("phrasecut-images")
    assert refused("clip-ViT-B-32", "coco-train2014") == line
    assert "Get the annotations first" in refused("clip-ViT-B-32", "phrasecut-images")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"images": [{}]}', '{"images": [{"file_name": 1}]}']
)
def test_annotations_that_cannot_be_read_are_named(refused, folder, content):
    path = folder / "refer/data/refcocog/instances.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    line = refused("coco-train2014")
    assert "Expected images, each with a file_name in refer/data/refcocog/instances.json" in line


def test_interrupted_download_says_that_it_goes_on(
    download, server, folder, published, monkeypatch
):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hybridgl.downloads.part.Part.finish", interrupt)
        printed = download("refcoco", status=130)
    assert printed.err.endswith("interrupted; the same command goes on from here\n")
    assert not (folder / "refer/data/refcoco").exists()
    size = (folder / "refer/data/downloads/refcoco.zip.part").stat().st_size
    download("refcoco")
    assert server.ranges("/mirror/refcoco.zip") == [None, f"bytes={size}-"]


def test_weights_go_to_their_folder_and_are_checked(download, server, folder, monkeypatch):
    contents = {"sam_vit_h_4b8939.pth": b"sam", "ViT-B-16.pt": b"clip"}
    known = dict(command.ITEMS)
    for name in ("sam-vit_h", "clip-ViT-B-16"):
        (file,) = known[name].files
        content = contents[file.name]
        server.serve(f"/mirror/{file.name}", content)
        sha256 = hashlib.sha256(content).hexdigest()
        sha256 = sha256[: len(file.sha256)]
        known[name] = catalogue.Item(
            name=name,
            kind=Kind.WEIGHTS,
            about="",
            files=(catalogue.RemoteFile(file.name, (), sha256),),
        )
    monkeypatch.setattr(command, "ITEMS", known)
    commands = []
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda argv, check: commands.append(argv) or subprocess.CompletedProcess(argv, 0),
    )
    monkeypatch.setattr(command, "SPACY_MODEL", "en_core_web_none")
    download("paper")
    for name, content in contents.items():
        assert (folder / "weights" / name).read_bytes() == content
    assert commands == [[sys.executable, "-m", "spacy", "download", "en_core_web_none"]]
    download("sam-vit_h", "--weights_folder", "elsewhere")
    assert (folder / "elsewhere/sam_vit_h_4b8939.pth").read_bytes() == b"sam"


def test_weights_with_wrong_bytes_are_refused(download, server, folder):
    server.serve("/mirror/ViT-B-32.pt", b"something else")
    line = download("clip-ViT-B-32", status=2).err.splitlines()[-1]
    assert "ViT-B-32.pt: expected a sha256 that starts with 40d365715913, got" in line
    assert paths(folder) == set()


def test_spacy_that_fails_is_told(folder, monkeypatch, capsys):
    monkeypatch.setattr(command, "SPACY_MODEL", "en_core_web_none")
    monkeypatch.setattr(subprocess, "run", lambda argv, check: subprocess.CompletedProcess(argv, 3))
    assert main(["download", "spacy"]) == 2
    assert "to install the model, it ended with status 3" in capsys.readouterr().err


def test_spacy_model_that_is_there_is_left_alone(folder, monkeypatch, capsys):
    (folder / "en_core_web_there").mkdir()
    (folder / "en_core_web_there/__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(command, "SPACY_MODEL", "en_core_web_there")
    assert main(["download", "spacy"]) == 0
    assert capsys.readouterr().out == "already there: en_core_web_there\n"


def test_phrasecut_says_where_its_files_come_from(refused):
    line = refused("phrasecut")
    assert "github.com/ChenyunWu/PhraseCutDataset" in line
    assert "into refer/data/phrasecut" in line
    assert "found no image_data_split.json, refer_miniv.json," in line


def test_phrasecut_comes_from_a_mirror_and_its_images_from_two_archives(download, server, folder):
    for file in ITEMS["phrasecut"].files:
        server.serve(f"/mirror/{file.name}", b"[]")
    ids = json.dumps([{"image_id": 7, "width": 1}, {"image_id": 12}]).encode()
    server.serve("/mirror/image_data_split.json", ids)
    server.serve("/mirror/images.zip", zipped(folder, {"VG_100K_2/7.jpg": b"7", "1.jpg": b"1"}))
    server.serve("/mirror/images2.zip", zipped(folder, {"VG_100K/12.jpg": b"12"}))
    download("phrasecut-images", "phrasecut")
    root = folder / "refer/data/phrasecut"
    images = {path: (root / path).read_bytes() for path in paths(root) if "images/" in path}
    assert images == {"images/7.jpg": b"7", "images/12.jpg": b"12"}
    assert {file.name for file in ITEMS["phrasecut"].files} <= paths(root)
    assert main(["download", "phrasecut", "phrasecut-images"]) == 0


def test_phrasecut_that_the_mirror_lacks_says_where_it_comes_from(download):
    line = download("phrasecut", status=2).err.splitlines()[-1]
    assert "refer_train.json: it answered 404" in line
    assert "github.com/ChenyunWu/PhraseCutDataset" in line


@pytest.mark.parametrize("content", ["{", '{"a": 1}', '[{"image_id": "x"}]', "[{}]"])
def test_phrasecut_images_that_cannot_be_read_are_named(refused, folder, content):
    path = folder / "refer/data/phrasecut/image_data_split.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    line = refused("phrasecut-images")
    assert "Expected a list of images, each with an image_id in refer/data/phrasecut" in line


def test_wrong_item_lists_the_right_ones(refused):
    line = refused("refcoco", "refcocos")
    assert "got 'refcocos'" in line
    assert all(name in line for name in (*ITEMS, *GROUPS))
    assert "got nothing" in refused()


@pytest.mark.parametrize("mirror", ["mirror", "ftp://host/a", "http://", "http://[a", "/folder"])
def test_mirror_that_is_no_address_is_refused(refused, mirror):
    assert repr(mirror) in refused("refcoco", "--mirror", mirror)


def test_folder_that_is_a_file_is_refused(refused, folder):
    (folder / "file").touch()
    assert "Give another --data_root DIR" in refused("refcoco", "--data_root", "file/data")
    assert "Give another --weights_folder DIR" in refused("refcoco", "--weights_folder", "file")


def test_list_names_every_item_with_its_sources(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["download", "--list"]) == 0
    printed = capsys.readouterr().out
    for item in ITEMS.values():
        assert f"\n{item.name}: " in printed
        assert all(f"    {url}\n" in f"{printed}\n" for file in item.files for url in file.urls)
    assert printed.startswith("paper: sam-vit_h, clip-ViT-B-16, spacy\n")
    assert list(tmp_path.iterdir()) == []


def test_every_weights_file_is_an_item_under_the_name_that_errors_give():
    for file in (*SAM_FILES.values(), *CLIP_FILES.values()):
        (remote,) = ITEMS[file.item].files
        assert (remote.name, remote.urls, remote.sha256) == (file.name, (file.url,), file.sha256)
