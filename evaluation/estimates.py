"""How long runs take, by what earlier runs took."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.runtime import read_summary

__all__ = ["TimeEstimate"]


class TimeEstimate:
    """Time of runs, from the time per image that earlier runs took.

    Args:
        folder: holds the folders of earlier runs.
    """

    def __init__(self, folder: Path) -> None:
        self._rates: dict[str, float] = {}
        self._present: set[str] = set()
        self._figures = 0.0
        for path in sorted(folder.glob("*/summary.json")):
            # Whatever lies there: a summary of another version, or none, has nothing to tell.
            with contextlib.suppress(LookupError, TypeError, AttributeError, ValueError):
                self._learn(read_summary(path.parent) or {})

    def _learn(self, summary: Mapping[str, Any]) -> None:
        """Keep what a run took for the images whose results it had to make."""
        made, seconds, settings = summary["store"]["made"], summary["seconds"], summary["settings"]
        features = made.get("features", 0) + made.get("global-local", 0)
        counts = {
            "proposals": made.get("proposals", 0),
            "features": features,
            "picks": 0 if features or made.get("gem") else summary["counts"]["images"],
        }
        took = {
            "proposals": float(seconds["proposals"]),
            # The time of the features includes that of the picks.
            "features": float(seconds["features and guidance"]),
            "picks": float(seconds["features and guidance"]),
        }
        for stage, count in counts.items():
            if count:
                rate = took[stage] / count
                self._rates[_stage_id(settings, stage)] = rate
                # Another mode takes about as long; its own measurement goes before this one.
                self._rates[_stage_id(settings, stage, any_method=True)] = rate
            self._present.add(_stage_id(settings, stage, of_split=True))
        self._figures = float(seconds.get("figures", 0.0))

    def seconds(self, settings: Mapping[str, Any], images: int, *, anew: bool) -> float | None:
        """Time of a run; None where a stage that it needs has not been measured.

        What the run makes is taken to be there for the runs after it.

        Args:
            settings: of the run.
            images: of its split.
            anew: whether it makes again what is there.
        """
        needed = []
        for stage in ("proposals", "features"):
            stored = _stage_id(settings, stage, of_split=True)
            if anew or stored not in self._present:
                needed.append(stage)
            self._present.add(stored)
        if settings["proposals"]["source"] != "sam":
            needed = [stage for stage in needed if stage != "proposals"]
        if "features" not in needed:
            needed.append("picks")
        rates = [
            self._rates.get(
                _stage_id(settings, stage),
                self._rates.get(_stage_id(settings, stage, any_method=True)),
            )
            for stage in needed
        ]
        known = [rate for rate in rates if rate is not None]
        return images * sum(known) + self._figures if len(known) == len(rates) else None


def _stage_id(
    settings: Mapping[str, Any], stage: str, *, of_split: bool = False, any_method: bool = False
) -> str:
    """Everything that the time of a stage depends on; with the split, what its results do."""
    method = settings["method"]
    described: dict[str, Any] = {"device": settings["device"], "dtype": settings["dtype"]}
    if stage == "proposals":
        described["proposals"] = settings["proposals"]
        described["sam"] = settings["weights"]["sha256"].get("sam")
    else:
        described["clip"] = settings["weights"]["sha256"]["clip"]
    if stage == "features" and not any_method:
        parts = ("name", "fusion", "masking_block", "quirks")
        described["method"] = {name: method.get(name) for name in parts}
    if of_split:
        names = ("dataset", "split", "split_by", "limit", "proposals")
        described |= {name: settings[name] for name in names}
    return json.dumps([stage, any_method, described], sort_keys=True)
