"""One declaration of a setting makes its flag, its check, its JSON and what differs from it."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest

from hybridgl.errors import SettingError
from hybridgl.settings import Settings, add_arguments, setting, setting_names


class Color(Enum):
    RED = "red"
    DARK_BLUE = "dark-blue"

    @classmethod
    def parse(cls, name):
        if name == "navy":
            return cls.DARK_BLUE
        try:
            return cls(name)
        except ValueError:
            raise ValueError(f"no paint is called {name}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyConfig(Settings):
    weight: float = setting(0.5, low=0, high=1, help="share of the toy", source="section 3")


@dataclass(frozen=True, kw_only=True, slots=True)
class InnerConfig(Settings):
    weight: float = setting(0.5, low=0, high=1, help="share of the toy")
    hidden: int = setting(3, low=1, flag=False, help="has no flag")
    seed: int | None = setting(None, low=0, late=True, aliases=("--old_seed",), help="of draws")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(Settings):
    inner: InnerConfig = field(default_factory=InnerConfig)
    quick: bool = setting(False, help="skip what is slow")
    color: Color = setting(Color.RED, parse=Color.parse, help="paint")
    folder: Path | None = setting(None, metavar="DIR", help="where")
    corner: tuple[float, float] = setting((1.0, 2.0), low=0, metavar=("X", "Y"), help="x and y")
    words: tuple[str, ...] = setting((), choices=("a", "b"), metavar="WORD", help="left out")
    size: str = setting("small", choices=("small", "large"), late=True, help="of the toy")


def parse(*words, of=(Config,), **options):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser, "toys", *of, **options)
    return parser.parse_args(words)


def read(*words):
    return Config.from_arguments(parse(*words))


def test_a_setting_of_one_line_has_a_flag_a_check_and_a_place_in_json(capsys):
    toy = ToyConfig.from_arguments(parse("--weight", "0.25", of=(ToyConfig,)))
    assert toy.json() == toy.changed() == {"weight": 0.25}
    with pytest.raises(SettingError, match=r"Expected weight from 0 to 1, got 2\.0; give"):
        ToyConfig.from_arguments(parse("--weight", "2", of=(ToyConfig,)))
    with pytest.raises(SystemExit):
        parse("--help", of=(ToyConfig,))
    shown = capsys.readouterr().out
    assert "toys:" in shown
    assert "share of the toy (default: 0.5; source: section 3)" in shown


def test_setting_that_is_on_by_default_can_be_turned_off():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class OnConfig(Settings):
        loud: bool = setting(True, help="sound")

    assert OnConfig.from_arguments(parse(of=(OnConfig,))).loud
    assert not OnConfig.from_arguments(parse("--no-loud", of=(OnConfig,))).loud


def test_without_flags_everything_is_as_declared():
    assert read() == Config()
    assert Config.from_arguments(argparse.Namespace()) == Config()


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--quick", "quick", True),
        ("--color dark-blue", "color", Color.DARK_BLUE),
        ("--color navy", "color", Color.DARK_BLUE),
        ("--folder a/b", "folder", Path("a/b")),
        ("--corner 0 7.5", "corner", (0.0, 7.5)),
        ("--words b a", "words", ("b", "a")),
        ("--words b --words a b", "words", ("b", "a", "b")),
        ("--size large", "size", "large"),
    ],
)
def test_flags_set_fields_of_every_type(words, name, value):
    config = read(*words.split())
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)
    assert list(config.changed()) == [name]


def test_flags_set_fields_of_nested_settings_under_former_names_too():
    assert read("--seed", "7").inner.seed == read("--old_seed", "7").inner.seed == 7
    assert read("--weight", "1").inner == InnerConfig(weight=1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--color green", "no paint is called green"),
        ("--size tiny", "invalid choice: 'tiny'"),
        ("--words a c", "invalid choice: 'c'"),
        ("--corner 1", "expected 2 arguments"),
        ("--seed x", "invalid int value: 'x'"),
    ],
)
def test_text_that_is_no_value_is_refused_by_its_flag(words, message, capsys):
    try:
        with pytest.raises((argparse.ArgumentError, SystemExit)) as refused:
            parse(*words.split())
    finally:
        printed = capsys.readouterr().err
    assert message in f"{refused.value} {printed}"


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (InnerConfig, {"weight": -0.1}, "Expected weight from 0 to 1, got -0.1; give"),
        (InnerConfig, {"weight": 1.1}, "Expected weight from 0 to 1, got 1.1; give"),
        (InnerConfig, {"weight": float("nan")}, "Expected weight from 0 to 1, got nan; give"),
        (InnerConfig, {"hidden": 0}, "Expected hidden of at least 1, got 0; give"),
        (InnerConfig, {"seed": -1}, "Expected seed of at least 0, got -1; give"),
        (Config, {"corner": (0.0, -1.0)}, "Expected corner of at least 0, got -1.0; give"),
        (Config, {"corner": (float("nan"), 0.0)}, "Expected corner of at least 0, got nan; give"),
        (Config, {"size": "tiny"}, "Expected size among small, large, got 'tiny'; choose"),
        (Config, {"words": ("a", "c")}, "Expected words among a, b, got 'c'; choose"),
    ],
)
def test_values_outside_range_or_choices_are_refused(config, given, message):
    with pytest.raises(SettingError, match=message):
        config(**given)


@pytest.mark.parametrize("given", [{"weight": 0}, {"weight": 1}, {"seed": 0}, {"seed": None}])
def test_ends_of_a_range_and_no_value_at_all_are_allowed(given):
    InnerConfig(**given)


def test_settings_that_two_classes_share_have_one_flag_and_both_read_it():
    arguments = parse("--weight", "0.75", of=(InnerConfig, Config))
    assert InnerConfig.from_arguments(arguments).weight == 0.75
    assert Config.from_arguments(arguments).inner.weight == 0.75


def test_two_declarations_of_one_name_are_refused():
    with pytest.raises(TypeError, match="one declaration of the setting weight, got two; rename"):
        parse(of=(ToyConfig, InnerConfig))


def test_value_of_a_setting_without_a_flag_is_not_taken_from_the_arguments():
    """Another setting of that name may have put it there."""
    assert InnerConfig.from_arguments(argparse.Namespace(hidden=9, weight=1.0)) == InnerConfig(
        weight=1.0
    )


def test_only_settings_with_a_flag_are_named():
    assert setting_names(InnerConfig) == {"weight", "seed"}
    assert setting_names(Config) >= setting_names(InnerConfig) | {"quick", "corner"}
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parse("--hidden", "5")


def test_choices_that_only_the_program_knows_are_its_own():
    assert parse("--seed", "4", choices={"seed": (3, 4)}).seed == 4
    with pytest.raises(argparse.ArgumentError, match="invalid choice: 5"):
        parse("--seed", "5", choices={"seed": (3, 4)})


def test_fields_may_come_from_elsewhere_than_the_arguments():
    config = Config.from_arguments(
        parse("--weight", "1", "--quick"), inner=InnerConfig(hidden=9), quick=False
    )
    assert config == Config(inner=InnerConfig(hidden=9))


def test_json_gives_the_values_back_nested_as_they_are_declared():
    values = Config(color=Color.DARK_BLUE, folder=Path("a"), words=("b",)).json()
    assert json.loads(json.dumps(values)) == values
    assert values == {
        "inner": {"weight": 0.5, "hidden": 3, "seed": None},
        "quick": False,
        "color": "dark-blue",
        "folder": "a",
        "corner": [1.0, 2.0],
        "words": ["b"],
        "size": "small",
    }


def test_json_can_leave_out_what_only_choosing_reads():
    values = Config().json(late=False)
    assert "size" not in values
    assert values["inner"] == {"weight": 0.5, "hidden": 3}


def test_changed_names_what_differs_from_the_defaults_or_from_others():
    inner = InnerConfig(weight=0.75, hidden=4)
    config = Config(inner=inner, color=Color.DARK_BLUE, corner=(0.0, 1.0))
    assert config.changed() == {
        "weight": 0.75,
        "hidden": 4,
        "color": "dark-blue",
        "corner": [0.0, 1.0],
    }
    assert config.changed(config) == {}
    assert config.changed(Config(inner=inner, size="large")) == {
        "color": "dark-blue",
        "corner": [0.0, 1.0],
        "size": "small",
    }
