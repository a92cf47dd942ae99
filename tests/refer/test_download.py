"""Datasets from a mirror on this machine, and unpacking: archives whole, damaged and hostile."""

from __future__ import annotations

import json
import random
import shutil
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from hybridgl import download as library
from hybridgl.download import RemoteFile
from hybridgl.errors import DataError
from refer.__main__ import main
from refer.download import ARCHIVES, ITEMS, unpack
from refer.splits import SPLITS
from tests.misbehaving_server import MisbehavingServer
from tests.refer_factories import mini_refer

CONTENTS = {
    "one.jpg": random.Random(1).randbytes(5_000),
    "two.jpg": b"two" * 1_000,
    "three.jpg": b"",
}
PHRASECUT_FILES = [f"refer_{split}.json" for split in SPLITS["phrasecut"]["-"]]


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


# Datasets


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with MisbehavingServer() as running:
        yield running


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The data root of a folder with nothing in it, and no published source within reach."""
    monkeypatch.chdir(tmp_path)
    for item, files in ARCHIVES.items():
        monkeypatch.setitem(ARCHIVES, item, tuple(RemoteFile(file.name) for file in files))
    return Path("refer/data")


@pytest.fixture
def fetch(server, root, capsys):
    """Runs the command with the mirror; returns what it printed."""

    def run(*words, status=0):
        assert main(["download", *words, "--mirror", f"{server.url}/m"]) == status
        return capsys.readouterr()

    return run


@pytest.fixture
def published(server, tmp_path_factory):
    """Root of a dataset in REFER form, whose archives the mirror has."""
    root = tmp_path_factory.mktemp("published")
    mini_refer("refcoco").write(root)
    files = [(f"refcoco/{path.name}", path.read_bytes()) for path in root.glob("refcoco/*")]
    files += [("refcoco/README", b"no"), ("__MACOSX/refcoco/._instances.json", b"no")]
    images = [(f"train2014/{path.name}", path.read_bytes()) for path in root.rglob("*.jpg")]
    images += [("train2014/", b""), ("train2014/COCO_train2014_000000000009.jpg", b"of no dataset")]
    for name, members in (("refcoco", files), ("train2014", images)):
        server.serve(f"/m/{name}.zip", zipped(root / "packing", members).read_bytes())
    (root / "packing").unlink()
    return root


def contents(folder):
    """Files below a folder, but hidden ones."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name[0] != "."
    }


def test_annotations_and_the_images_that_they_name_make_the_expected_tree(fetch, root, published):
    printed = fetch("coco-train2014", "refcoco").out
    downloads = {f"downloads/{name}" for name in ("refcoco.zip", "train2014.zip", "sha256.json")}
    found = contents(root)
    assert found.keys() >= downloads
    assert {name: found[name] for name in found.keys() - downloads} == contents(published)
    assert printed.index("refcoco.zip") < printed.index("train2014.zip")
    assert "refer/data/downloads/train2014.zip is not needed any more" in printed
    assert printed.splitlines()[-1].startswith("all 12 images that the annotations name are in")


def test_again_changes_nothing_and_needs_no_network(fetch, server, root, published):
    fetch("refcoco", "coco-train2014")
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.*")}
    num_requests = len(server.requests)
    printed = fetch("refcoco", "coco-train2014").out
    assert "already there: refer/data/downloads/train2014.zip, whole" in printed
    assert "train2014: 0, already there: 12" in printed
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.*")} == times
    shutil.rmtree(root / "downloads")
    assert "already there: refer/data/refcoco" in fetch("refcoco", "coco-train2014").out
    assert len(server.requests) == num_requests


def test_image_that_went_missing_is_unpacked_again(fetch, root, published):
    fetch("refcoco", "coco-train2014")
    (lost, *_) = root.rglob("*.jpg")
    lost.unlink()
    assert "train2014: 1, already there: 11" in fetch("coco-train2014").out
    assert lost.is_file()


def test_archive_that_was_damaged_is_fetched_again(fetch, root, published, caplog):
    fetch("refcoco")
    archive = root / "downloads/refcoco.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-50])
    fetch("refcoco")
    assert archive.read_bytes() == whole
    assert "damaged" in caplog.text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PK and so on", "Expected a whole zip file at refer/data/downloads/refcoco.zip, got"),
        (None, "Expected instances.json and refs(*).p in refer/data/downloads/refcoco.zip, got"),
    ],
)
def test_archive_of_something_else_is_refused(fetch, server, root, tmp_path, content, told):
    if content is None:
        content = zipped(tmp_path / "a.zip", [("refcoco/instances.json", b"{}")]).read_bytes()
    server.serve("/m/refcoco.zip", content)
    assert f"error: {told}" in fetch("refcoco", status=2).err


def test_images_that_are_in_no_archive_are_counted(fetch, server, root, published, tmp_path):
    (lost, *others) = sorted(published.rglob("*.jpg"))
    members = [(path.name, path.read_bytes()) for path in others]
    server.serve("/m/train2014.zip", zipped(tmp_path / "a.zip", members).read_bytes())
    line = fetch("refcoco", "coco-train2014", status=2).err
    assert f"got archives without 1 of them, the first {lost.name}; check" in line
    assert len(list(root.rglob("*.jpg"))) == len(others)


@pytest.mark.parametrize(
    ("item", "path", "content", "told"),
    [
        ("coco-train2014", "", "", "fetch annotations first: `python -m refer download refcoco`"),
        ("coco-train2014", "refcocog/instances.json", "{", "images, each with a file_name, in "),
        ("coco-train2014", "refcocog/instances.json", "[]", "images, each with a file_name, in "),
        ("coco-train2014", "refcoco/instances.json", '{"images": [{}]}', "each with a file_name"),
        ("coco-train2014", "refcoco/instances.json", '{"images": [{"file_name": 1}]}', "TypeError"),
        ("phrasecut-images", "", "", "annotations first: `python -m refer download phrasecut`"),
        ("phrasecut-images", "phrasecut/image_data_split.json", "{", "each with an image_id, in"),
        ("phrasecut-images", "phrasecut/image_data_split.json", '[{"image_id": "x"}]', "'x'"),
    ],
)
def test_images_need_annotations_that_can_be_read(fetch, server, root, item, path, content, told):
    if path:
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(content)
    (line,) = fetch(item, status=2).err.splitlines()
    assert told in line
    assert path in line
    assert server.requests == []


def test_phrasecut_is_fetched_from_a_mirror_and_its_images_from_two_archives(
    fetch, server, root, tmp_path
):
    for name in PHRASECUT_FILES:
        server.serve(f"/m/{name}", b"[]")
    ids = json.dumps([{"image_id": 7, "width": 1}, {"image_id": 12}]).encode()
    server.serve("/m/image_data_split.json", ids)
    for name, members in (
        ("images", [("VG_100K_2/7.jpg", b"7"), ("1.jpg", b"1")]),
        ("images2", [("VG_100K/12.jpg", b"12")]),
    ):
        server.serve(f"/m/{name}.zip", zipped(tmp_path / "a.zip", members).read_bytes())
    fetch("phrasecut-images", "phrasecut")
    assert contents(root / "phrasecut/images") == {"7.jpg": b"7", "12.jpg": b"12"}
    assert contents(root / "phrasecut").keys() >= {*PHRASECUT_FILES, "image_data_split.json"}
    assert main(["download", "phrasecut", "phrasecut-images"]) == 0


def test_phrasecut_without_a_source_says_where_it_is(fetch, capsys):
    line = fetch("phrasecut", status=2).err.splitlines()[-1]
    assert "refer_train.json: it answered 404" in line
    assert main(["download", "phrasecut"]) == 2
    for told in (line, capsys.readouterr().err):
        assert "github.com/ChenyunWu/PhraseCutDataset fetches, into refer/data/phrasecut" in told


def test_items_of_the_library_are_fetched_too(fetch, server, root, tmp_path, monkeypatch):
    monkeypatch.setitem(library.WEIGHTS, "clip-RN50", RemoteFile("RN50.pt"))
    server.serve("/m/RN50.pt", b"clip")
    fetch("clip-RN50", "--weights_folder", "weights")
    assert (tmp_path / "weights/RN50.pt").read_bytes() == b"clip"


def test_words_of_no_item_list_the_right_ones(fetch):
    line = fetch("refcoco", "refcocos", status=2).err
    assert "got 'refcocos'; check the spelling" in line
    assert all(name in line for name in (*ITEMS, "paper"))
    listed = fetch("--list").out
    assert all(f"\n{name}: " in listed for name in ITEMS)


def test_root_that_is_a_file_is_refused(fetch, tmp_path):
    (tmp_path / "file").touch()
    line = fetch("refcoco", "--data_root", "file/data", status=2).err
    assert "Cannot write file/data/downloads/refcoco.zip: Not a directory; " in line
    assert "give another folder with --data_root DIR" in line


# Archives


@pytest.fixture
def archive(tmp_path):
    members = [("train/", b""), *((f"train/{name}", CONTENTS[name]) for name in CONTENTS)]
    return zipped(tmp_path / "train.zip", [*members, ("train/unwanted.txt", b"no")])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "folder"


def take(archive, folder, is_wanted=CONTENTS.__contains__, lines=None):
    return unpack(archive, folder, is_wanted, ([] if lines is None else lines).append)


def test_only_what_is_wanted_and_not_there_is_written(archive, folder):
    lines = []
    assert take(archive, folder, lines=lines) == set(CONTENTS)
    assert contents(folder) == CONTENTS
    before = (folder / "one.jpg").stat().st_mtime_ns
    (folder / "two.jpg").write_bytes(b"tow" * 1_000)
    (folder / "three.jpg").write_bytes(b"longer")
    (folder / ".two.jpg.partial").write_bytes(b"what a killed process left")
    take(archive, folder, lines=lines)
    assert contents(folder) == CONTENTS
    assert not list(folder.glob(".*"))
    assert (folder / "one.jpg").stat().st_mtime_ns == before
    assert [line.rpartition(f"{folder}: ")[2] for line in lines] == [
        "3, already there: 0",
        "2, already there: 1",
    ]


@pytest.mark.parametrize(
    "name",
    ["../one.jpg", "/one.jpg", "train/../../one.jpg", "..\\..\\one.jpg", "C:\\one.jpg", "a/.."],
)
def test_names_that_point_out_of_the_archive_are_refused(tmp_path, folder, name):
    evil = zipped(tmp_path / "evil.zip", [("two.jpg", b"two"), (name, b"evil")])
    with pytest.raises(DataError, match="points out of it; delete it"):
        take(evil, folder, lambda _: True)
    assert contents(tmp_path).keys() == {"evil.zip"}


def test_links_are_neither_made_nor_followed(tmp_path, folder):
    link = zipfile.ZipInfo("one.jpg")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    folder.mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"mine")
    (folder / "one.jpg").symlink_to(tmp_path / "outside")
    take(tmp_path / "evil.zip", folder)
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert not (folder / "one.jpg").is_symlink()
    assert contents(folder) == {"one.jpg": b"/etc/passwd"}


def test_two_files_of_one_name_are_refused_where_they_differ(tmp_path, folder):
    pair = [("a/one.jpg", b"one"), ("b/one.jpg", b"two")]
    with pytest.raises(DataError, match=r"got a/one\.jpg and b/one\.jpg, which differ"):
        take(zipped(tmp_path / "a.zip", pair), folder)
    twins = [("a/one.jpg", b"one"), ("b/one.jpg", b"one")]
    assert take(zipped(tmp_path / "b.zip", twins), folder) == {"one.jpg"}


def with_wrong_bytes(archive):
    members = [("one.jpg", CONTENTS["one.jpg"]), ("two.jpg", b"two" * 99)]
    content = zipped(archive, members, zipfile.ZIP_STORED).read_bytes()
    return content.replace(b"twotwo", b"tootwo", 1)


def with_unknown_compression(archive):
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\x01\x02", 0, content.rindex(b"train/one.jpg")) + 10] = 77
    return content


def with_a_password(archive):
    content = bytearray(archive.read_bytes())
    start = content.index(b"PK\x01\x02")
    while start >= 0:
        content[start + 8] |= 1
        start = content.find(b"PK\x01\x02", start + 4)
    return content


DAMAGE = {
    "empty": (lambda _: b"", "File is not a zip file"),
    "page": (lambda _: b"<html>", "File is not a zip file"),
    "cut short": (lambda archive: archive.read_bytes()[:-30], "."),
    "wrong bytes": (with_wrong_bytes, r"Bad CRC-32.*two\.jpg"),
    "unknown compression": (with_unknown_compression, "compression"),
    "password": (with_a_password, "password required"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_archive_is_named_with_the_reason(archive, folder, kind):
    damage, reason = DAMAGE[kind]
    archive.write_bytes(damage(archive))
    with pytest.raises(DataError, match=rf"whole zip file at {archive}, got .*{reason}.*; delete"):
        take(archive, folder)
    assert contents(folder).items() <= CONTENTS.items()


def test_damage_anywhere_leaves_whole_files_or_none(tmp_path):
    """Every right file or an error, whatever byte is wrong and wherever the archive ends."""
    expected = {name: content[:300] for name, content in CONTENTS.items()}
    members = [(f"train/{name}", content) for name, content in expected.items()]
    whole = zipped(tmp_path / "whole.zip", members).read_bytes()
    draw, damaged, refused = random.Random(0), tmp_path / "damaged.zip", 0
    for turn in range(200):
        content = bytearray(whole)
        if turn % 4:
            content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        else:
            del content[draw.randrange(len(whole)) :]
        damaged.write_bytes(content)
        folder = tmp_path / f"folder {turn}"
        try:
            names = take(damaged, folder)
        except DataError:
            refused, names = refused + 1, set()
        found = contents(folder) if folder.exists() else {}
        assert names <= found.keys()
        assert found.items() <= expected.items()
    assert 50 < refused < 200


def test_full_disk_is_said_before_anything_is_written(archive, folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=7_999))
    with pytest.raises(OSError, match=r"expected 8\.00kB of free space, got 8\.00kB.*--data_root"):
        take(archive, folder)
    assert contents(folder) == {}
    (folder / "one.jpg").write_bytes(CONTENTS["one.jpg"])
    take(archive, folder)
    assert contents(folder) == CONTENTS


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_stops_it_leaves_whole_files_only(archive, folder, monkeypatch, error):
    real, replaced = Path.replace, []

    def replace(path, target):
        replaced.append(target)
        if len(replaced) == 2:
            raise error
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(type(error), match=r"Cannot write .*No space left|^$"):
            take(archive, folder)
    assert contents(folder) == {"one.jpg": CONTENTS["one.jpg"]}
    take(archive, folder)
    assert contents(folder) == CONTENTS
