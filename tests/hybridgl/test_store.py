"""The store: entries round the clock of runs that are killed, disks that fill, and merges."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import hybridgl
import hybridgl.files
import hybridgl.store
from hybridgl.store import Entry, Store, cached, entry_key, require_json


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


WRITER = """
import hashlib, sys
from pathlib import Path
import numpy as np
from hybridgl.store import Store
store = Store(Path(sys.argv[1]))
"""


def start_python(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER + script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(hybridgl.__file__).parents[1])},
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
        assert saved == store.root / "v2" / "maps" / KEY[:2] / f"{KEY}.safetensors"

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
        store = Store(store.root)
        assert store.load("maps", KEY) is not None
        assert store.load("maps", OTHER_KEY) is None
        assert store.load("parses", KEY) is None
        assert (store.hits, store.misses, store.damaged) == (
            {"maps": 1},
            {"maps": 1, "parses": 1},
            {},
        )

    def test_an_entry_is_counted_once(self, store, saved):
        store = Store(store.root)
        for _ in range(2):
            store.load("maps", KEY)
            store.load("maps", OTHER_KEY)
        store.save("maps", OTHER_KEY, {}, {})
        store.load("maps", OTHER_KEY)
        assert (store.hits, store.misses) == ({"maps": 1}, {"maps": 1})

    def test_entry_that_is_saved_unasked_counts_as_made(self, store):
        for key in (KEY, KEY, OTHER_KEY):
            store.save("maps", key, {}, {})
        store.load("maps", KEY)
        assert (store.hits, store.misses) == ({}, {"maps": 2})

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
    def test_refuses_a_key_that_is_no_sha256(self, store, key):
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


INPUTS = {"image": "a", "sizes": (1, 2), "blocks": {"first": 9}}


class TestCached:
    @pytest.fixture
    def compute(self):
        """Counts its calls, and makes something else each time."""

        def compute():
            compute.calls += 1
            return {"n": np.array([compute.calls])}, {"of": (compute.calls,)}

        compute.calls = 0
        return compute

    def test_computes_once_and_loads_from_then_on(self, store, compute):
        entries = [cached(store, "maps", INPUTS, compute) for _ in range(2)]
        entries.append(cached(Store(store.root), "maps", INPUTS, compute))
        assert compute.calls == 1
        assert [entry.arrays["n"].tolist() for entry in entries] == [[1]] * 3
        assert [list(entry.meta["of"]) for entry in entries] == [[1]] * 3
        assert store.keys("maps") == [entry_key("maps", INPUTS)]

    def test_without_a_store_computes_every_time(self, compute):
        entries = [cached(None, "maps", INPUTS, compute) for _ in range(2)]
        assert [entry.arrays["n"].tolist() for entry in entries] == [[1], [2]]
        assert isinstance(entries[0], Entry)

    @pytest.mark.parametrize(
        "changed",
        [
            {"image": "b"},
            {"sizes": (2, 1)},
            {"sizes": (1, 2.5)},
            {"blocks": {"first": 8}},
            {"blocks": {"first": 9, "last": 11}},
            {"more": None},
        ],
    )
    def test_any_input_that_differs_is_another_entry(self, store, compute, changed):
        cached(store, "maps", INPUTS, compute)
        cached(store, "maps", INPUTS | changed, compute)
        assert compute.calls == 2
        assert len(store.keys("maps")) == 2

    def test_kinds_do_not_share_entries(self, store, compute):
        cached(store, "maps", INPUTS, compute)
        cached(store, "parses", INPUTS, compute)
        assert compute.calls == 2

    def test_order_of_inputs_and_lists_for_tuples_make_no_difference(self):
        backwards = dict(reversed({**INPUTS, "sizes": [1, 2]}.items()))
        assert entry_key("maps", backwards) == entry_key("maps", INPUTS)

    def test_other_code_of_a_stage_makes_every_entry_again(self, store, compute, monkeypatch):
        cached(store, "maps", INPUTS, compute)
        results = hybridgl.store._RESULTS_VERSION
        monkeypatch.setattr(hybridgl.store, "_RESULTS_VERSION", results + 1)
        cached(store, "maps", INPUTS, compute)
        assert compute.calls == 2

    def test_damaged_entry_is_computed_again(self, store, compute):
        cached(store, "maps", INPUTS, compute)
        store.path("maps", entry_key("maps", INPUTS)).write_bytes(b"")
        assert cached(store, "maps", INPUTS, compute).arrays["n"].tolist() == [2]
        assert cached(store, "maps", INPUTS, compute).arrays["n"].tolist() == [2]

    def test_nothing_is_kept_of_what_could_not_be_computed(self, store):
        def fail():
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            cached(store, "maps", INPUTS, fail)
        assert store.keys("maps") == []


class TestHas:
    def test_tells_what_is_there_without_counting_it(self, store, saved):
        store = Store(store.root)
        assert store.has("maps", KEY)
        assert not store.has("maps", OTHER_KEY)
        assert not store.has("parses", KEY)
        assert (store.hits, store.misses) == ({}, {})

    def test_overwriting_has_only_what_it_saved_itself(self, store, saved):
        again = Store(store.root, overwrite=True)
        assert not again.has("maps", KEY)
        again.save("maps", KEY, {}, {})
        assert again.has("maps", KEY)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_entry_that_waits_to_be_written_is_there(self, tmp_path, monkeypatch, overwrite):
        written = threading.Event()
        monkeypatch.setattr(
            hybridgl.store, "atomic_write_bytes", lambda *_, **__: written.wait(timeout=10)
        )
        store = Store(tmp_path, overwrite=overwrite)
        with store.background_writes():
            store.save("maps", KEY, {}, {})
            assert store.has("maps", KEY)
            assert not store.path("maps", KEY).exists()
            written.set()

    def test_keys_are_sorted_and_of_one_kind(self, store, saved):
        store.save("maps", OTHER_KEY, {}, {})
        store.save("parses", key_of("a third"), {}, {})
        assert store.keys("maps") == sorted([KEY, OTHER_KEY])
        assert store.keys("gem") == Store(store.root / "none").keys("maps") == []


def test_stores_are_merged_by_copying_one_over_the_other(tmp_path):
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    for number in range(6):
        for store in (one, other)[number % 2 :] if number < 4 else ():
            store.save("maps", key_of(number), {"n": np.array([number])}, {})
    other.save("parses", KEY, {}, META)
    shutil.copytree(other.root, one.root, dirs_exist_ok=True)
    merged = Store(one.root)
    assert merged.keys("maps") == sorted(key_of(number) for number in range(4))
    for number in range(4):
        assert merged.load("maps", key_of(number)).arrays["n"].tolist() == [number]
    assert merged.load("parses", KEY).meta == META
    assert not merged.damaged


class TestWarnings:
    def leave(self, root, *parts):
        path = root.joinpath(*parts, f"{KEY}.safetensors")
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        return root / parts[0]

    def test_entries_of_earlier_versions_are_named_with_the_command_that_removes_them(
        self, tmp_path
    ):
        root = tmp_path / "the store"
        store = Store(root)
        store.save("maps", KEY, {}, {})
        old = [self.leave(root, "features", "ab"), self.leave(root, "v1", "maps", "ab")]
        (warning,) = store.warnings()
        assert "(features, v1)" in warning
        command = warning.partition("`")[2].partition("`")[0]
        assert shlex.split(command) == ["rm", "-r", *map(str, old)]
        subprocess.run(shlex.split(command), check=True)
        assert Store(root).warnings() == []
        assert store.load("maps", KEY) is not None

    def test_other_files_and_a_missing_folder_are_no_reason(self, store, saved):
        (store.root / "notes").mkdir()
        (store.root / "notes" / "a.safetensors").touch()
        (store.root / "readme.txt").touch()
        assert store.warnings() == Store(store.root / "none").warnings() == []


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

    def test_damaged_entries_are_named_among_files(self, store, saved):
        store.save("maps", OTHER_KEY, {}, {})
        other = store.path("maps", OTHER_KEY)
        other.write_bytes(other.read_bytes()[:-1])
        gone = store.path("maps", key_of("gone"))
        assert Store.damaged_among([saved, other, gone]) == [other, gone]


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


def test_opening_a_store_sweeps_every_folder_of_it(store, saved):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = [
        folder / f".{hybridgl.files._host()}-{process.pid}-01234567.partial"
        for folder in (saved.parent, store.root / "v2" / "parses" / "ab")
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    Store(store.root)
    assert not any(path.exists() for path in left)
    assert saved.exists()


class TestWriters:
    def test_killed_writers_leave_whole_entries_or_none(self, tmp_path):
        script = """
for number in range(int(sys.argv[2]), 10**9, 10):
    key = hashlib.sha256(str(number).encode()).hexdigest()
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
key, writer = sys.argv[2], int(sys.argv[3])
for _ in range(60):
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


class TestUnwritable:
    def test_store_on_a_file_is_refused_at_once(self, tmp_path):
        path = tmp_path / "store"
        path.touch()
        with pytest.raises(NotADirectoryError, match=f"got the file {path}.*--store DIR"):
            Store(path)

    def test_folder_below_a_file_names_path_reason_and_fix(self, tmp_path, caplog):
        (tmp_path / "file").touch()
        store = Store(tmp_path / "file" / "store")
        assert store.load("maps", KEY) is None
        assert not caplog.records
        with pytest.raises(OSError, match=r"Not a directory.*--store DIR") as caught:
            store.save("maps", KEY, sample_arrays(), META)
        assert str(store.path("maps", KEY)) in str(caught.value)
        assert caught.value.errno == errno.ENOTDIR

    def test_file_in_the_place_of_a_kind_names_path_reason_and_fix(self, store):
        (store.root / "v2").mkdir(parents=True)
        (store.root / "v2" / "maps").touch()
        assert store.load("maps", KEY) is None
        with pytest.raises(OSError, match=r"Cannot write .*--store DIR"):
            store.save("maps", KEY, sample_arrays(), META)

    def test_folder_in_the_place_of_an_entry_leaves_no_partial(self, store):
        store.path("maps", KEY).mkdir(parents=True)
        with pytest.raises(OSError, match=r"Is a directory.*--store DIR"):
            store.save("maps", KEY, sample_arrays(), META)
        assert not partials(store.root)

    def test_full_disk_names_path_reason_and_fix(self, store, monkeypatch):
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


def test_an_entry_that_cannot_be_written_in_the_background_is_reported(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(hybridgl.store, "atomic_write_bytes", full)
    store = Store(tmp_path)
    with pytest.raises(OSError, match="disk full"), store.background_writes():
        store.save("maps", "0" * 64, {"n": np.zeros(1)}, {})
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_background_block_inside_another_one_changes_nothing(tmp_path, monkeypatch):
    written = threading.Event()
    monkeypatch.setattr(
        hybridgl.store, "atomic_write_bytes", lambda *_, **__: written.wait(timeout=10)
    )
    store = Store(tmp_path)
    with store.background_writes():
        with store.background_writes():
            store.save("maps", KEY, {}, {})
        store.save("maps", OTHER_KEY, {}, {})
        assert store.has("maps", KEY)
        written.set()
    assert store._writer is None


def test_entries_that_wait_to_be_written_are_bounded_by_their_bytes(tmp_path, monkeypatch):
    waiting = []
    write = hybridgl.store.atomic_write_bytes

    def note(*arguments, **options):
        waiting.append(sum(store._unwritten_bytes.values()))
        write(*arguments, **options)

    monkeypatch.setattr(hybridgl.store, "atomic_write_bytes", note)
    monkeypatch.setattr(hybridgl.store, "_MOST_UNWRITTEN_BYTES", 20_000)
    store = Store(tmp_path)
    with store.background_writes():
        for number in range(20):
            store.save("maps", key_of(number), {"n": np.zeros(10_000, np.uint8)}, {})
    assert len(store.keys("maps")) == 20
    assert max(waiting) < 20_000 + 2 * 11_000
