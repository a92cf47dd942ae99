"""Pickles load as plain data or not at all."""

from __future__ import annotations

import copyreg
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from refer.pickles import UnsafePickleError, load_plain_pickle

PLAIN = [
    {"ref_id": 7, "big": 1 << 70, "ratio": 2.5, "no": None, "yes": True, "text": "café \u2603"},
    (1, 2, 3, 4),
    {"nested": [{"tokens": ["a", "b"]}]},
    {1, 2},
    frozenset({"x"}),
    b"",
    b"\x00\xff",
    1 + 2j,
]

# Written by Python 2.7's cPickle: [{'raw': u'caf\xe9', 'sent': 'a', 'l': 'caf\xe9', 'x': 10L,
# 'big': 1 << 70, 't': (1, 2.5, None, True), 's': set([1]), 'split': 'val'}], protocols 0, 1, 2.
PYTHON_2 = [
    b"(lp1\n(dp2\nS'raw'\np3\nVcaf\xe9\np4\nsS's'\nc__builtin__\nset\np5\n((lp6\nI1\natRp7\n"
    b"sS'split'\np8\nS'val'\np9\nsS'big'\np10\nL1180591620717411303424L\nsS'x'\nL10L\nsS'l'\n"
    b"S'caf\\xe9'\np11\nsS'sent'\np12\nS'a'\nsS't'\n(I1\nF2.5\nNI01\ntp13\nsa.",
    b"]q\x01}q\x02(U\x03rawq\x03X\x05\x00\x00\x00caf\xc3\xa9q\x04U\x01sc__builtin__\nset\nq\x05"
    b"(]q\x06K\x01atRq\x07U\x05splitq\x08U\x03valq\tU\x03bigq\nL1180591620717411303424L\n"
    b"U\x01xL10L\nU\x01lU\x04caf\xe9q\x0bU\x04sentq\x0cU\x01aU\x01t(K\x01G@\x04\x00\x00\x00"
    b"\x00\x00\x00NI01\ntua.",
    b"\x80\x02]q\x01}q\x02(U\x03rawq\x03X\x05\x00\x00\x00caf\xc3\xa9q\x04U\x01s"
    b"c__builtin__\nset\nq\x05]q\x06K\x01a\x85Rq\x07U\x05splitq\x08U\x03valq\tU\x03bigq\n"
    b"\x8a\t\x00\x00\x00\x00\x00\x00\x00\x00@U\x01x\x8a\x01\nU\x01lU\x04caf\xe9q\x0bU\x04sent"
    b"q\x0cU\x01aU\x01t(K\x01G@\x04\x00\x00\x00\x00\x00\x00N\x88tua.",
]


class Calls:
    """Pickles as a call of the function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Custom:
    """Pickles by its class's name."""

    def __init__(self):
        self.field = 1


def load(tmp_path: Path, content: bytes) -> object:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    return load_plain_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_survive_every_protocol(tmp_path, protocol):
    assert load(tmp_path, pickle.dumps(PLAIN, protocol)) == PLAIN


def test_a_bytearray_of_protocol_5_is_plain(tmp_path):
    assert load(tmp_path, pickle.dumps(bytearray(b"xy"), 5)) == bytearray(b"xy")


@pytest.mark.parametrize("content", PYTHON_2)
def test_python_2_pickles_arrive_as_text(tmp_path, content):
    assert load(tmp_path, content) == [
        {
            "raw": "café",
            "sent": "a",
            "l": "café",
            "x": 10,
            "big": 1 << 70,
            "t": (1, 2.5, None, True),
            "s": {1},
            "split": "val",
        }
    ]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_call_is_refused_by_name_and_not_made(tmp_path, protocol):
    made = tmp_path / "made"
    content = pickle.dumps([Calls(os.system, f"mkdir '{made}'")], protocol)
    with pytest.raises(UnsafePickleError, match=rf"refs\(unc\).p.*{os.name}.system.*not run"):
        load(tmp_path, content)
    assert not made.exists()
    pickle.loads(content)
    assert made.exists(), "the pickle of this test was harmless"


HOSTILE = {
    "eval": (pickle.dumps(Calls(eval, "1 + 1"), 2), "__builtin__.eval"),
    "eval, protocol 4": (pickle.dumps(Calls(eval, "1 + 1"), 4), "builtins.eval"),
    "getattr": (pickle.dumps(Calls(getattr, "", "join"), 4), "builtins.getattr"),
    "GLOBAL": (b"cos\nsystem\n.", "os.system"),
    "GLOBAL and REDUCE": (b"cos\nsystem\n(S'exit 1'\ntR.", "os.system"),
    "STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
    "STACK_GLOBAL with dots": (
        b"\x80\x04\x8c\x08builtins\x8c\x0cset.__init__\x93.",
        "builtins.set.__init__",
    ),
    "INST": (b"(S'exit 1'\nios\nsystem\n.", "os.system"),
    "OBJ": (b"(cos\nsystem\nS'exit 1'\no.", "os.system"),
    "NEWOBJ": (b"\x80\x02csubprocess\nPopen\n)\x81.", "subprocess.Popen"),
    "BUILD": (b"ccodecs\nCodecInfo\n)R}S'x'\nI1\nsb.", "codecs.CodecInfo"),
    "Python 2 instance": (
        b"ccopy_reg\n_reconstructor\n(c__main__\nA\nc__builtin__\nobject\nNtR.",
        "copy_reg._reconstructor",
    ),
    "a class of ours": (pickle.dumps(Custom(), 2), "Custom"),
    "a numpy scalar": (pickle.dumps(np.int64(3), 2), "numpy"),
    "a text persistent id": (b"Pstore:1\n.", "persistent id 'store:1'"),
    "a persistent id": (b"\x80\x02U\x03abcQ.", "persistent id 'abc'"),
    "a codec that is a program": (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", "codec 'rot13'"),
    "a huge buffer": (b"c__builtin__\nbytearray\n(I1000000000000\ntR.", "__builtin__.bytearray"),
}


@pytest.mark.parametrize(("content", "refused"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused_by_name(tmp_path, content, refused):
    with pytest.raises(UnsafePickleError, match="README") as caught:
        load(tmp_path, content)
    assert refused in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def extension_code():
    code = 0x7F
    copyreg.add_extension("os", "system", code)
    yield code
    copyreg.remove_extension("os", "system", code)


@pytest.mark.parametrize("write", ["\x82\x7f", "\x83\x7f\x00", "\x84\x7f\x00\x00\x00"])
def test_extension_codes_are_refused_even_when_already_resolved(tmp_path, extension_code, write):
    content = b"\x80\x02" + write.encode("latin1") + b"."
    assert pickle.loads(content) is os.system
    with pytest.raises(UnsafePickleError, match=r"os\.system"):
        load(tmp_path, content)


def test_unregistered_extension_codes_are_damage(tmp_path):
    with pytest.raises(ValueError, match="refs"):
        load(tmp_path, b"\x80\x02\x82\x55.")


@pytest.mark.parametrize(
    "content",
    [
        b"c__builtin__\nset\n}S'update'\nI1\nsb.",
        b"c__builtin__\nset\n(N}S'update'\nI1\nstb.",
        b"c__builtin__\nbytes\n(N}S'__class__'\nc__builtin__\nset\nstb.",
        b"c__builtin__\nbytes\n(N}S'__call__'\nI1\nstb.",
    ],
)
def test_a_pickle_cannot_alter_what_builds_its_values(tmp_path, content):
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path, content)
    assert load(tmp_path, pickle.dumps(PLAIN, 2)) == PLAIN


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_truncation_is_an_error_that_names_the_file(tmp_path, protocol):
    content = pickle.dumps(PLAIN, protocol)
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"refs\(unc\)\.p"):
            load(tmp_path, content[:length])


@pytest.mark.parametrize("content", [b"", b"[]", b'{"refs": []}', b"<html>", b"\x80\x09N.", b"PK"])
def test_other_files_are_errors_that_name_the_file(tmp_path, content):
    with pytest.raises(ValueError, match=r"whole pickle in .*refs\(unc\)\.p"):
        load(tmp_path, content)


def test_noise_never_fails_otherwise_than_by_value_error(tmp_path):
    rng = random.Random(5)
    valid = pickle.dumps(PLAIN, 2)
    refused = 0
    for _ in range(300):
        content = bytearray(valid)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            load(tmp_path, bytes(content))
        except ValueError:
            refused += 1
    assert refused > 100


def test_a_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_plain_pickle(tmp_path / "none.p")
