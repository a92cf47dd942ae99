"""How settings are declared: once, in a dataclass, with default, range, help and source.

From the declarations follow the command-line arguments, the checks of ranges, the JSON that a run
records, and what differs from the defaults. A setting's flag is the name of its field.

Example::

    @dataclass(frozen=True, kw_only=True, slots=True)
    class ToyConfig(Settings):
        weight: float = setting(0.5, low=0, high=1, help="share of the toy", source="section 3")
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Self

from hybridgl.errors import SettingError

__all__ = ["Settings", "add_arguments", "setting", "setting_names", "settings_of"]

_KEY = "setting"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Declaration:
    """What a field's metadata holds."""

    help: str
    source: str
    low: float | None
    high: float | None
    choices: Sequence[str] | None
    metavar: str | tuple[str, ...] | None
    aliases: tuple[str, ...]
    flag: bool
    late: bool
    parse: Callable[[str], Any] | None


def setting(
    default: Any,
    *,
    help: str,
    source: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | tuple[str, ...] | None = None,
    aliases: tuple[str, ...] = (),
    flag: bool = True,
    late: bool = False,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """Declare a field of a ``Settings`` dataclass.

    Args:
        default: its value where none is given.
        help: what it is, with its unit; shown by ``--help``.
        source: where the default comes from, a paper's section or a released program; shown too.
        low: least value of a number, or of each number of a tuple.
        high: largest value.
        choices: the values that a text, or each text of a tuple, may have.
        metavar: what stands for the value in ``--help``.
        aliases: further flags, such as former names.
        flag: whether the programs have a flag for it.
        late: whether only a method's ``choose`` reads it, so that stored scores serve any value.
        parse: reads the value from the command line; raises a ``ValueError`` that says what is
            wrong.
    """
    declaration = _Declaration(
        help=help,
        source=source,
        low=low,
        high=high,
        choices=choices,
        metavar=metavar,
        aliases=aliases,
        flag=flag,
        late=late,
        parse=parse,
    )
    return dataclasses.field(default=default, metadata={_KEY: declaration})


@dataclass(frozen=True)
class Settings:
    """Base of frozen dataclasses whose fields are settings, or other ``Settings``.

    Raises:
        SettingError: a value is out of its range, or not among its choices.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            declaration = field.metadata.get(_KEY)
            value = getattr(self, field.name)
            if declaration is not None and value is not None:
                for one in value if isinstance(value, tuple) else (value,):
                    _check(field.name, one, declaration)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, **given: Any) -> Self:
        """Build the settings from parsed arguments.

        Args:
            arguments: of a parser that ``add_arguments`` has filled; what they lack keeps its
                default.
            given: fields whose values do not come from the arguments.

        Raises:
            SettingError: a value is out of its range.
        """
        values = dict(given)
        types = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.name in given:
                continue
            declaration = field.metadata.get(_KEY)
            if declaration is None and _is_settings(types[field.name]):
                values[field.name] = types[field.name].from_arguments(arguments)
            elif declaration is not None and declaration.flag and hasattr(arguments, field.name):
                value = getattr(arguments, field.name)
                values[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    def json(self, *, late: bool = True) -> dict[str, Any]:
        """Return the settings as JSON values, nested as declared.

        Args:
            late: include those that only ``choose`` reads.
        """
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            declaration = field.metadata.get(_KEY)
            if late or declaration is None or not declaration.late:
                value = getattr(self, field.name)
                values[field.name] = (
                    value.json(late=late) if isinstance(value, Settings) else _plain(value)
                )
        return values

    def changed(self, default: Settings | None = None) -> dict[str, Any]:
        """Return the settings that differ from others, as JSON values by their names.

        Args:
            default: the others; None compares with the declared defaults.
        """
        other = type(self)() if default is None else default
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value, usual = getattr(self, field.name), getattr(other, field.name)
            if isinstance(value, Settings):
                found |= value.changed(usual)
            elif _KEY in field.metadata and value != usual:
                found[field.name] = _plain(value)
        return found


def add_arguments(
    parser: argparse.ArgumentParser,
    title: str,
    *classes: type[Settings],
    choices: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Add a flag for every setting of some classes, in a group of their own.

    A setting that several classes share gets one flag.

    Args:
        parser: gets the group.
        title: of the group.
        classes: whose fields, and those of the classes nested in them, are added.
        choices: values that only the program knows, by the setting's name.
    """
    group = parser.add_argument_group(title)
    seen: dict[str, tuple[Any, Any]] = {}
    for name, kind, field in (row for one in classes for row in _declared(one)):
        declared = (field.default, field.metadata[_KEY])
        if seen.setdefault(name, declared) != declared:
            raise TypeError(f"Expected one declaration of the setting {name}, got two; rename one.")
        if seen[name] is declared:
            declaration = field.metadata[_KEY]
            if choices and name in choices:
                declaration = dataclasses.replace(declaration, choices=choices[name])
            _add_flag(group, name, kind, field.default, declaration)


def setting_names(cls: type[Settings]) -> set[str]:
    """Return the names of all settings that have a flag, nested ones included."""
    return {name for name, _, _ in _declared(cls)}


def settings_of(values: Mapping[str, Any], *classes: type[Settings]) -> argparse.Namespace:
    """Return values by name as ``Settings.from_arguments`` takes them.

    Args:
        values: by the names of flags; text is read as that of a flag.
        classes: that have the settings.

    Raises:
        SettingError: a name that no class has, or text that cannot be read.
    """
    known = {
        name: (_without_none(kind), field.metadata[_KEY].parse)
        for one in classes
        for name, kind, field in _declared(one)
    }
    found = argparse.Namespace()
    for name, value in values.items():
        if name not in known:
            raise SettingError(
                f"Expected settings among {', '.join(known)}, got {name!r}; choose one of them."
            )
        kind, parse = known[name]
        if isinstance(value, str) and typing.get_origin(kind) is tuple:
            value = (value,)
        elif isinstance(value, str):
            try:
                value = _reader(parse or kind)(value)
            except (ValueError, argparse.ArgumentTypeError) as error:
                raise SettingError(
                    f"Expected {name} as --help has it, got {value!r} ({error}); give another."
                ) from None
        setattr(found, name, value)
    return found


def _declared(cls: type[Settings]) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Name, type and field of every setting with a flag."""
    types = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        declaration, kind = field.metadata.get(_KEY), types[field.name]
        if declaration is None and _is_settings(kind):
            yield from _declared(kind)
        elif declaration is not None and declaration.flag:
            yield field.name, kind, field


def _add_flag(group: Any, name: str, kind: Any, default: Any, declaration: _Declaration) -> None:
    flags = [f"--{name}", *declaration.aliases]
    kind = _without_none(kind)
    if kind is bool:
        action = argparse.BooleanOptionalAction if default else "store_true"
        group.add_argument(*flags, dest=name, action=action, default=default, help=declaration.help)
        return
    options: dict[str, Any] = {"dest": name, "default": default, "metavar": declaration.metavar}
    shown = _shown(default)
    notes = [f"default: {shown}"] if shown else []
    notes += [f"source: {declaration.source}"] if declaration.source else []
    options["help"] = declaration.help + (f" ({'; '.join(notes)})" if notes else "")
    if typing.get_origin(kind) is tuple:
        kind, *others = typing.get_args(kind)
        options["nargs"] = "+" if Ellipsis in others else 1 + len(others)
        if Ellipsis in others:
            options["action"] = _Collect
    options["type"] = _reader(declaration.parse or kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        options["metavar"] = "{" + ",".join(str(one.value) for one in kind) + "}"
    elif declaration.choices is not None:
        options["choices"] = list(declaration.choices)
    group.add_argument(*flags, **options)


class _Collect(argparse.Action):
    """Collects the values of a flag that is given several times."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add to the values so far, of which the default is none."""
        so_far = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(() if so_far is self.default else so_far), *values])


def _reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wrap a reader for argparse, so that its own words reach the user."""
    if read in (int, float, str, Path):
        return read

    def from_text(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            words = str(error)
            if isinstance(read, type) and issubclass(read, Enum):
                known = ", ".join(str(one.value) for one in read)
                words = f"expected one of {known}, got {text!r}"
            raise argparse.ArgumentTypeError(words) from None

    return from_text


def _check(name: str, value: Any, declaration: _Declaration) -> None:
    low, high, choices = declaration.low, declaration.high, declaration.choices
    if choices is not None and value not in choices:
        raise SettingError(
            f"Expected {name} among {', '.join(choices)}, got {value!r}; choose one of them."
        )
    if isinstance(value, str | Enum | Path):
        return
    # Written so that NaN, which compares with nothing, is refused.
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        wanted = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise SettingError(f"Expected {name} {wanted}, got {value}; give a number in that range.")


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _shown(default: Any) -> str:
    if default is None or default == ():
        return ""
    plain = _plain(default)
    return " ".join(map(str, plain)) if isinstance(plain, list) else str(plain)


def _without_none(kind: Any) -> Any:
    if isinstance(kind, UnionType):
        (kind,) = (one for one in typing.get_args(kind) if one is not NoneType)
    return kind


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)
