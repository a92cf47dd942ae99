from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import hybridgl.store
from hybridgl.files import atomic_write_bytes, sweep_partials
from hybridgl.store import Entry, Store, require_json

REPOSITORY = Path(__file__).parents[2]


def key_of(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()


KEY = key_of("a key")
OTHER_KEY = key_of("another key")
META = {"phrases": ["red cat", "Größe ☃"], "hw": [480, 640], "scale": 0.1, "kept": None}


def sample_arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "maps": generator.standard_normal((2, 3, 4)).astype(np.float32),
        "counts": np.array([1, -(2**62)], dtype=np.int64),
        "kept": np.array([True, False, True]),
        "rle": np.frombuffer(b"abc", dtype=np.uint8),
    }


def assert_same_arrays(loaded, expected):
    assert loaded.keys() == expected.keys()
    for name, array in expected.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name], array)


def partials(folder):
    return list(folder.rglob("*.partial"))


def start_python(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def saved(store):
    """The file of one sample entry."""
    store.save("maps", KEY, sample_arrays(), META)
    return store.path("maps", KEY)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"finite number at meta, got nan"),
        ({"a": [0, float("inf")]}, r"finite number at meta\.a\[1\], got inf"),
        ({1: "a"}, r"text as every name in meta, got 1"),
        ({"a": np.int64(3)}, r"at meta\.a, got int64"),
        (Path("x"), r"at meta, got \w*Path"),
        ({"a": b"x"}, r"at meta\.a, got bytes"),
    ],
)
def test_refuses_what_json_would_change(value, message):
    with pytest.raises(ValueError, match=message):
        require_json(value, "meta")


class TestRoundTrip:
    def test_gives_back_arrays_and_meta(self, store, saved):
        entry = store.load("maps", KEY)
        assert isinstance(entry, Entry)
        assert_same_arrays(entry.arrays, sample_arrays())
        assert list(entry.arrays) == sorted(sample_arrays())
        assert entry.meta == META
        assert saved == store.root / "maps" / KEY[:2] / f"{KEY}.safetensors"

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((0, 64), np.float32),
            np.zeros((3, 0, 2), bool),
            np.array(2.5),
            np.arange(12, dtype=np.int64).reshape(3, 4).T,
            np.arange(20, dtype=np.uint8)[::-3],
            np.arange(3, dtype=np.float16),
            np.array([-0.0, np.inf, np.nan], np.float32),
        ],
        ids=["no proposals", "empty axis", "scalar", "transpose", "stride", "float16", "special"],
    )
    def test_of_arrays_of_any_shape_and_layout(self, store, array):
        store.save("maps", KEY, {"array": array}, {})
        assert_same_arrays(store.load("maps", KEY).arrays, {"array": array})

    def test_of_big_endian_arrays_keeps_the_values(self, store):
        store.save("maps", KEY, {"array": np.array([1, 2], ">i4")}, {})
        assert store.load("maps", KEY).arrays["array"].tolist() == [1, 2]

    def test_of_no_arrays_at_all(self, store):
        store.save("parses", KEY, {}, {"noun_phrase": "cat"})
        assert store.load("parses", KEY) == Entry({}, {"noun_phrase": "cat"})

    def test_gives_arrays_that_can_be_written(self, store, saved):
        for array in store.load("maps", KEY).arrays.values():
            array[...] = 0

    def test_same_content_gives_the_same_bytes(self, store, saved):
        before = saved.read_bytes()
        backwards = dict(reversed(sample_arrays().items()))
        store.save("maps", KEY, backwards, dict(reversed(META.items())))
        assert saved.read_bytes() == before

    def test_saving_again_replaces_the_entry(self, store, saved):
        store.save("maps", KEY, {}, {"second": 2})
        assert store.load("maps", KEY) == Entry({}, {"second": 2})

    def test_meta_that_looks_like_the_checksum_does_no_harm(self, store):
        meta = {"0" * 64: "0" * 64, "sha256": key_of("weights"), "entry": '{"format":9}'}
        store.save("maps", KEY, {"sha256": np.zeros(64, np.uint8)}, meta)
        assert store.load("maps", KEY).meta == meta

    def test_another_store_on_the_same_folder_finds_the_entry(self, store, saved):
        assert Store(store.root).load("maps", KEY).meta == META

    def test_entry_is_readable_for_whom_the_umask_allows(self, saved):
        umask = os.umask(0)
        os.umask(umask)
        assert saved.stat().st_mode & 0o777 == 0o666 & ~umask


class TestLookup:
    def test_counts_hits_and_misses_per_kind(self, store, saved):
        assert store.load("maps", KEY) is not None
        assert store.load("maps", OTHER_KEY) is None
        assert store.load("parses", KEY) is None
        assert (store.hits, store.misses, store.damaged) == (
            {"maps": 1},
            {"maps": 1, "parses": 1},
            {},
        )

    def test_an_entry_is_counted_once(self, store, saved):
        for _ in range(2):
            store.load("maps", KEY)
            store.load("maps", OTHER_KEY)
        store.save("maps", OTHER_KEY, {}, {})
        store.load("maps", OTHER_KEY)
        assert (store.hits, store.misses) == ({"maps": 1}, {"maps": 1})

    def test_overwriting_loads_only_what_it_saved_itself(self, store, saved):
        again = Store(store.root, overwrite=True)
        assert again.load("maps", KEY) is None
        again.save("maps", KEY, {}, {"made": "again"})
        assert again.load("maps", KEY).meta == {"made": "again"}
        assert again.misses == {"maps": 1}

    def test_opening_and_loading_write_nothing(self, tmp_path):
        assert Store(tmp_path / "store").load("maps", KEY) is None
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("kind", ["", "Maps", "../maps", "a/b", "maps\n", "0"])
    def test_refuses_a_kind_that_is_no_plain_word(self, store, kind):
        with pytest.raises(ValueError, match="Expected a kind"):
            store.path(kind, KEY)

    @pytest.mark.parametrize("key", ["", "17", "../../" + KEY, KEY.upper(), KEY + "\n", KEY + "0"])
    def test_refuses_a_key_that_is_no_digest(self, store, key):
        with pytest.raises(ValueError, match=r"64 hex digits"):
            store.path("maps", key)

    def test_other_format_version_is_missing_and_made_again(self, store, monkeypatch, caplog):
        with monkeypatch.context() as patch:
            patch.setattr(hybridgl.store, "FORMAT_VERSION", hybridgl.store.FORMAT_VERSION + 1)
            store.save("maps", KEY, sample_arrays(), META)
            assert store.load("maps", KEY) is not None
        store = Store(store.root)
        assert store.load("maps", KEY) is None
        assert (store.misses, store.damaged) == ({"maps": 1}, {})
        assert not caplog.records
        store.save("maps", KEY, {}, {"again": True})
        assert store.load("maps", KEY).meta == {"again": True}


class TestDamage:
    def assert_damaged(self, root, path, caplog):
        """A fresh store reports the entry once, never returns it, and can make it again."""
        content = path.read_bytes() if path.is_file() else None
        caplog.clear()
        store = Store(root)
        assert store.load("maps", KEY) is None
        assert store.load("maps", KEY) is None
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(path) in caplog.text
        assert (store.hits, store.misses, store.damaged) == ({}, {"maps": 1}, {"maps": 1})
        if content is not None:
            assert path.read_bytes() == content

    def test_every_length_of_a_cut_file_is_noticed(self, store, saved, caplog):
        whole = saved.read_bytes()
        for length in range(len(whole)):
            saved.write_bytes(whole[:length])
            self.assert_damaged(store.root, saved, caplog)

    def test_every_changed_byte_is_noticed(self, store, saved, caplog):
        whole = saved.read_bytes()
        generator = random.Random(0)
        for position in range(len(whole)):
            changed = bytearray(whole)
            changed[position] ^= generator.randint(1, 255)
            saved.write_bytes(changed)
            self.assert_damaged(store.root, saved, caplog)

    @pytest.mark.parametrize("extra", [b"\0", b" ", b"x" * 1000])
    def test_added_bytes_are_noticed(self, store, saved, caplog, extra):
        saved.write_bytes(saved.read_bytes() + extra)
        self.assert_damaged(store.root, saved, caplog)

    def test_random_bytes_and_zeros_are_noticed(self, store, saved, caplog):
        length = saved.stat().st_size
        for content in (random.Random(0).randbytes(length), bytes(length), b"0" * length):
            saved.write_bytes(content)
            self.assert_damaged(store.root, saved, caplog)

    def test_entry_of_another_key_is_noticed(self, store, saved, caplog):
        other = store.path("maps", OTHER_KEY)
        store.save("maps", OTHER_KEY, sample_arrays(), META)
        shutil.copyfile(other, saved)
        self.assert_damaged(store.root, saved, caplog)
        assert OTHER_KEY in caplog.text

    def test_entry_of_another_kind_is_noticed(self, store, saved, caplog):
        store.save("parses", KEY, sample_arrays(), META)
        shutil.copyfile(store.path("parses", KEY), saved)
        self.assert_damaged(store.root, saved, caplog)

    def test_entry_that_cannot_be_read_is_noticed(self, store, saved, caplog):
        saved.unlink()
        saved.mkdir()
        self.assert_damaged(store.root, saved, caplog)

    def test_saving_makes_a_damaged_entry_good(self, store, saved, caplog):
        saved.write_bytes(b"")
        assert store.load("maps", KEY) is None
        store.save("maps", KEY, sample_arrays(), META)
        assert store.load("maps", KEY).meta == META
        saved.write_bytes(b"")
        assert store.load("maps", KEY) is None
        assert store.damaged == {"maps": 2}
        assert len(caplog.records) == 2


class TestRefusedContent:
    @pytest.mark.parametrize(
        "array",
        [np.array(["a"]), np.array([None]), np.array([1j])],
        ids=["text", "object", "complex"],
    )
    def test_arrays_of_other_types(self, store, array):
        with pytest.raises(ValueError, match="Expected arrays of booleans, integers or floats"):
            store.save("maps", KEY, {"array": array}, {})
        assert not store.root.exists()

    def test_the_name_that_the_format_reserves(self, store):
        with pytest.raises(ValueError, match="__metadata__"):
            store.save("maps", KEY, {"__metadata__": np.zeros(2)}, {})

    def test_meta_that_json_would_change(self, store):
        with pytest.raises(ValueError, match=r"finite number at meta\.score, got nan"):
            store.save("maps", KEY, {}, {"score": float("nan")})
        with pytest.raises(ValueError, match=r"text as every name in meta\.by_id, got 7"):
            store.save("maps", KEY, {}, {"by_id": {7: "a"}})
        assert not store.root.exists()


class TestInterruptedWrite:
    @pytest.mark.parametrize("function", ["fsync", "replace"])
    @pytest.mark.parametrize("error", [OSError(errno.EIO, "disk broke"), KeyboardInterrupt()])
    def test_keeps_the_old_content_and_no_partial(self, tmp_path, monkeypatch, function, error):
        path = tmp_path / "summary.json"
        path.write_bytes(b"old")

        def fail(*_):
            assert partials(tmp_path)
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(type(error)):
                atomic_write_bytes(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_content_is_on_the_disk_before_it_gets_its_name(self, tmp_path, monkeypatch):
        path = tmp_path / "summary.json"
        steps = []
        fsync, replace = os.fsync, os.replace

        def note_fsync(descriptor):
            status = os.fstat(descriptor)
            steps.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
            fsync(descriptor)

        def note_replace(source, target):
            steps.append("name")
            replace(source, target)

        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(os, "replace", note_replace)
        atomic_write_bytes(path, b"all of it")
        assert steps == [len(b"all of it"), "name", "folder"]

    def test_folder_that_cannot_be_flushed_is_no_error(self, tmp_path, monkeypatch):
        fsync = os.fsync

        def fail_for_folders(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "Invalid argument")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fail_for_folders)
        atomic_write_bytes(tmp_path / "summary.json", b"content")
        assert (tmp_path / "summary.json").read_bytes() == b"content"

    def test_killed_writers_leave_whole_entries_or_none(self, tmp_path):
        script = """
import sys
from pathlib import Path
import numpy as np
from tests.test_store import key_of
from hybridgl.store import Store
store = Store(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 10**9, 10):
    key = key_of(number)
    store.save("maps", key, {"map": np.full(200_000, number, np.int64)}, {"number": number})
    print(number, flush=True)
"""
        root = tmp_path / "store"
        generator = random.Random(0)
        finished = set()
        for start in range(10):
            process = start_python(script, root, start)
            finished.add(int(process.stdout.readline()))
            time.sleep(generator.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            finished.update(map(int, process.communicate()[0].split()))
            assert process.returncode == -signal.SIGKILL
        store = Store(root)
        files = [path for path in root.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".safetensors"}
        keys = {key_of(number): number for number in range(max(finished) + 11)}
        for path in files:
            entry = store.load("maps", path.stem)
            assert entry.meta == {"number": keys[path.stem]}
            np.testing.assert_array_equal(entry.arrays["map"], np.full(200_000, keys[path.stem]))
        assert finished <= {keys[path.stem] for path in files}
        assert not store.damaged

    def test_two_writers_of_one_key_never_mix(self, tmp_path):
        script = """
import sys
from pathlib import Path
import numpy as np
from hybridgl.store import Store
store, key, writer = Store(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
for _ in range(150):
    store.save("maps", key, {"map": np.full(20_000 * (1 + writer), writer)}, {"writer": writer})
"""
        root = tmp_path / "store"
        store = Store(root)
        processes = [start_python(script, root, KEY, writer) for writer in range(2)]
        seen = set()
        while any(process.poll() is None for process in processes):
            entry = store.load("maps", KEY)
            if entry is not None:
                writer = entry.meta["writer"]
                np.testing.assert_array_equal(
                    entry.arrays["map"], np.full(20_000 * (1 + writer), writer)
                )
                seen.add(writer)
        assert [process.communicate()[0] for process in processes] == ["", ""]
        assert [process.returncode for process in processes] == [0, 0]
        assert seen
        assert not store.damaged
        assert store.load("maps", KEY) is not None
        assert not partials(root)

    def test_two_threads_may_write_one_file(self, tmp_path):
        path = tmp_path / "summary.json"
        contents = [bytes([writer]) * 100_000 for writer in range(2)]

        def write_often(content):
            for _ in range(100):
                atomic_write_bytes(path, content)

        with ThreadPoolExecutor(max_workers=2) as threads:
            assert list(threads.map(write_often, contents)) == [None, None]
        assert path.read_bytes() in contents
        assert list(tmp_path.iterdir()) == [path]


class TestUnwritable:
    def test_store_on_a_file_is_refused_at_once(self, tmp_path):
        path = tmp_path / "store"
        path.touch()
        with pytest.raises(NotADirectoryError, match=f"got the file {path}.*--store DIR"):
            Store(path)

    def test_folder_below_a_file_names_path_reason_and_remedy(self, tmp_path, caplog):
        (tmp_path / "file").touch()
        store = Store(tmp_path / "file" / "store")
        assert store.load("maps", KEY) is None
        assert not caplog.records
        with pytest.raises(OSError, match=r"Not a directory.*--store DIR") as caught:
            store.save("maps", KEY, sample_arrays(), META)
        assert str(store.path("maps", KEY)) in str(caught.value)
        assert caught.value.errno == errno.ENOTDIR

    def test_file_in_the_place_of_a_kind_names_path_reason_and_remedy(self, store):
        store.root.mkdir()
        (store.root / "maps").touch()
        assert store.load("maps", KEY) is None
        with pytest.raises(OSError, match=r"Cannot write .*--store DIR"):
            store.save("maps", KEY, sample_arrays(), META)

    def test_folder_in_the_place_of_an_entry_leaves_no_partial(self, store):
        store.path("maps", KEY).mkdir(parents=True)
        with pytest.raises(OSError, match=r"Is a directory.*--store DIR"):
            store.save("maps", KEY, sample_arrays(), META)
        assert not partials(store.root)

    def test_full_disk_names_path_reason_and_remedy(self, store, monkeypatch):
        def fail(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(OSError, match=r"No space left.*free space") as caught:
                store.save("maps", KEY, sample_arrays(), META)
        assert caught.value.errno == errno.ENOSPC
        assert str(store.path("maps", KEY)) in str(caught.value)
        assert not [path for path in store.root.rglob("*") if path.is_file()]

    def test_write_that_stops_half_way_leaves_nothing(self, store):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(OSError, match=r"File too large.*free space"):
                store.save("maps", KEY, {"map": np.zeros(1_000_000)}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not [path for path in store.root.rglob("*") if path.is_file()]

    def test_message_names_the_option_of_the_folder(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="with --output DIR"):
            atomic_write_bytes(tmp_path / "file" / "records.jsonl", b"")


class TestSweep:
    HERE = hybridgl.store._host()
    ELSEWHERE = "0" * 8
    DAY = 24 * 60 * 60

    @pytest.fixture
    def dead_pid(self):
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        return process.pid

    def leave(self, folder, host, pid, age_seconds=0):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f".{host}-{pid}-01234567.partial"
        path.touch()
        then = time.time() - age_seconds
        os.utime(path, (then, then))
        return path

    def test_removes_what_a_dead_process_left(self, tmp_path, dead_pid):
        left = self.leave(tmp_path, self.HERE, dead_pid)
        sweep_partials(tmp_path)
        assert not left.exists()

    def test_removes_what_is_older_than_a_day(self, tmp_path):
        left = [
            self.leave(tmp_path, self.HERE, os.getpid(), self.DAY + 60),
            self.leave(tmp_path, self.ELSEWHERE, 1, self.DAY + 60),
        ]
        sweep_partials(tmp_path)
        assert not any(path.exists() for path in left)

    def test_keeps_files_of_live_writers_here_and_elsewhere(self, tmp_path, dead_pid):
        live = [
            self.leave(tmp_path, self.HERE, os.getpid(), self.DAY - 60),
            self.leave(tmp_path, self.HERE, 1),
            self.leave(tmp_path, self.ELSEWHERE, dead_pid, self.DAY - 60),
        ]
        sweep_partials(tmp_path)
        assert all(path.exists() for path in live)

    def test_keeps_every_other_file(self, tmp_path, dead_pid):
        others = [
            tmp_path / name
            for name in ("film.partial", f".{self.HERE}-{dead_pid}.partial", "records.jsonl")
        ]
        for path in others:
            path.touch()
            os.utime(path, (0, 0))
        sweep_partials(tmp_path)
        assert all(path.exists() for path in others)

    def test_missing_folder_is_no_error(self, tmp_path):
        sweep_partials(tmp_path / "missing")

    def test_opening_a_store_sweeps_every_folder_of_it(self, store, saved, dead_pid):
        left = [
            self.leave(saved.parent, self.HERE, dead_pid),
            self.leave(store.root / "parses" / "ab", self.HERE, dead_pid),
        ]
        Store(store.root)
        assert not any(path.exists() for path in left)
        assert saved.exists()

    def test_knows_the_partial_of_a_write_under_way(self, tmp_path, monkeypatch):
        def fail(partial, _):
            sweep_partials(tmp_path)
            assert Path(partial).exists()
            with monkeypatch.context() as patch:
                patch.setattr(hybridgl.store, "_is_alive", lambda pid: pid != os.getpid())
                sweep_partials(tmp_path)
            assert not Path(partial).exists()
            raise OSError(errno.EIO, "reached the end")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="reached the end"):
            atomic_write_bytes(tmp_path / "records.jsonl", b"")


def test_what_was_saved_is_written_whatever_ends_the_block(tmp_path, monkeypatch):
    write = hybridgl.store.atomic_write_bytes

    def slowly(*args, **kwargs):
        time.sleep(0.02)
        write(*args, **kwargs)

    monkeypatch.setattr(hybridgl.store, "atomic_write_bytes", slowly)
    store, keys = Store(tmp_path), [f"{n:064x}" for n in range(5)]

    def interrupted():
        with store.background_writes():
            for key in keys:
                store.save("maps", key, {"n": np.zeros(1)}, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(Store(tmp_path).load("maps", key) for key in keys)
    assert store.load("maps", keys[0])


def test_an_entry_that_is_being_written_can_be_loaded(tmp_path):
    store = Store(tmp_path)
    with store.background_writes():
        for n in range(200):
            key = f"{n:064x}"
            store.save("maps", key, {"n": np.array([n])}, {})
            assert store.load("maps", key).arrays["n"].tolist() == [n]


def test_an_entry_that_cannot_be_written_behind_is_told(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(hybridgl.store, "atomic_write_bytes", full)
    store = Store(tmp_path)
    with pytest.raises(OSError, match="disk full"), store.background_writes():
        store.save("maps", "0" * 64, {"n": np.zeros(1)}, {})
    assert list(tmp_path.rglob("*.safetensors")) == []
