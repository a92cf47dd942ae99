"""Pickles that can only hold data: loading one never imports or calls anything of its choosing.

REFER annotations are published as pickles, and a pickle is a program: an ordinary load runs what
the file asks for.  Here it may build containers, numbers, strings and bytes, and nothing else.

Source: the pickle documentation, "Restricting Globals"; opcodes as listed by ``pickletools``.
"""

from __future__ import annotations

import copyreg
import pickle
from pathlib import Path
from typing import NoReturn

from hybridgl.errors import DataError

__all__ = ["UnsafePickleError", "load_plain_pickle"]

_FIX = (
    "do not open it with an ordinary unpickler; fetch the file again from the source named in "
    "refer/README.md, or write its data as JSON where you trust it"
)


class UnsafePickleError(DataError):
    """A pickle asked for something other than plain data; nothing of it was run."""


class _Latin1Bytes:
    """What stands for ``bytes`` and ``_codecs.encode``, which write bytes in protocols 0 to 2.

    Without slots or state there is nothing on it that a pickle's BUILD opcode could change.
    """

    __slots__ = ()

    def __call__(self, text: str = "", codec: str = "latin1") -> bytes:
        if codec != "latin1":
            raise UnsafePickleError(f"the codec {codec!r}")
        return text.encode("latin1")


_BUILTINS = ("builtins", "__builtin__")
_CONSTRUCTORS: dict[tuple[str, str], object] = {
    **{(module, kind.__name__): kind for module in _BUILTINS for kind in (set, frozenset, complex)},
    **{(module, "bytes"): _Latin1Bytes() for module in _BUILTINS},
    ("_codecs", "encode"): _Latin1Bytes(),
}


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler in which every way to a callable ends in ``find_class``.

    These are GLOBAL, STACK_GLOBAL, INST and extension codes.
    """

    def find_class(self, module: str, name: str) -> object:
        try:
            return _CONSTRUCTORS[module, name]
        except KeyError:
            raise UnsafePickleError(f"{module}.{name}") from None

    def persistent_load(self, persistent_id: object) -> NoReturn:
        raise UnsafePickleError(f"the persistent id {persistent_id!r}")


def load_plain_pickle(path: Path) -> object:
    """Load a pickle of built-in containers, numbers, strings and bytes, of any protocol.

    Python-2 byte strings are read as Latin-1 text, so text arrives as ``str`` either way.

    Raises:
        UnsafePickleError: the pickle names a class, a function, an extension code or a persistent
            id; the message names the file and what was refused.
        DataError: the file is cut short, damaged or not a pickle.
        OSError: the file cannot be read.
    """
    # A code that this process has resolved before would be taken from the cache, past find_class.
    copyreg.clear_extension_cache()
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file, encoding="latin1").load()
        except UnsafePickleError as error:
            raise UnsafePickleError(
                f"Expected only containers, numbers, strings and bytes in the pickle {path}, "
                f"got a request for {error}, which was refused and not run; {_FIX}."
            ) from None
        except OSError:
            raise
        except Exception as error:  # a damaged pickle can fail in any operation it stumbles into
            raise DataError(
                f"Expected a whole pickle in {path}, got {path.stat().st_size} bytes that are cut "
                f"short, damaged or not a pickle ({type(error).__name__}: {error}); {_FIX}."
            ) from error
