"""A whole run at RefCOCO's proportions, timed against the order of work of the released program.

Generated images and random weights of real size (``benchmarks/data.py``) go through both programs
as a user runs them, and through ``benchmarks/reference.py``, in one process. As random weights
propose nothing useful, the ellipses of the image take the place of SAM's masks, which are made all
the same, on both sides.

Seconds run from models loaded to records written. Left out on both sides: reading and hashing model
files, reading annotations, figures, and the intervals of the scores.

Example:
    python -m benchmarks.end_to_end --images 3 --masks 32 --output run.json
    python -m benchmarks.end_to_end --images 2 --against ../other-checkout --pairs 3
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

import hybridgl_main
import save_attn_gem
from benchmarks.data import Workload, drawn_masks
from benchmarks.reference import ReferenceSchedule
from benchmarks.stages import forget_peaks, joules, machine, peaks, table
from evaluation import evaluate
from evaluation import run as runs
from evaluation.proposals import Finish, SamSource
from evaluation.records import read_records
from hybridgl.config import HybridGLConfig
from hybridgl.devices import select_device, set_tf32
from hybridgl.images import RgbImage
from hybridgl.masks import Proposals
from hybridgl.program import keep_freed_memory
from hybridgl.timing import collect
from refer.refer import load_refer

IMAGES_OF_VAL = 1_500
"""Of RefCOCO's val."""

LEFT_OUT = ("load models", "hash model files", "read annotations", "intervals")
"""Stages that are not counted."""

REFERENCE = "reference schedule"
OURS = "ours, cold store"
OURS_BFLOAT16 = "ours, cold store, bfloat16"
OURS_TOKENS = "ours, cold store, tokens kept"


@dataclass(frozen=True, slots=True)
class Kind:
    """How our programs are run.

    Attributes:
        flags: besides those that name data and models.
        store: name of its folder; what other runs have left there is used.
        cold: whether the store is empty, so that the program that writes GEM maps runs too.
        compared_with: the run that has to predict the same, or nearly so.
    """

    flags: tuple[str, ...]
    store: str
    cold: bool = False
    compared_with: str | None = None


KINDS = {
    OURS: Kind((), "float32", cold=True, compared_with=REFERENCE),
    OURS_BFLOAT16: Kind(("--dtype", "bfloat16"), "bfloat16", cold=True, compared_with=OURS),
    OURS_TOKENS: Kind(("--keep_tokens",), "tokens", cold=True, compared_with=OURS),
    "ours, warm store, mode L2G, tokens kept": Kind(
        ("--fusion_mode", "L2G", "--keep_tokens"), "tokens"
    ),
    "ours, warm store, mode L2G": Kind(("--fusion_mode", "L2G"), "float32"),
    "ours, warm store, mode token_masking": Kind(("--fusion_mode", "token_masking"), "float32"),
    "ours, warm store, other alpha": Kind(("--alpha", "0.5"), "float32"),
    "ours, warm store, other num_candidates": Kind(("--num_candidates", "5"), "float32"),
}
"""In the order in which they run: a warm store is what the first has left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run.

    Attributes:
        seconds: from models loaded to records written.
        maps_seconds: of these, those of the program that writes GEM maps.
        stages: seconds of every stage, all images together, without those left out. Where threads
            work at once, they add up to more than the whole.
        left_out: seconds that are not counted.
        peak_bytes: largest resident size of the process during the run, models included.
        device_peak_bytes: most memory that tensors took on the GPU; None without one.
        joules: that the GPU took, those for loading models included; None where nothing tells.
        predictions: "ref sentence" -> proposals of the variants "features" and "guided".
    """

    seconds: float
    maps_seconds: float
    stages: dict[str, float]
    left_out: float
    peak_bytes: int
    device_peak_bytes: int | None
    joules: float | None
    predictions: dict[str, tuple[int | None, int | None]]


def run_reference(workload: Workload, limit: int | None = None) -> Measurement:
    """Run the reference schedule.

    Args:
        workload: the data and models.
        limit: images, the first ones; None takes all.
    """
    device = workload.torch_device
    split = load_refer(workload.folder / "data", "refcoco", "val", "unc", check_counts=False)
    if limit is not None:
        split = split.limited(limit)
    drawn = {image_id: drawn_masks(image_id, workload.masks) for image_id in split.images}
    set_tf32(enabled=False)  # earlier runs in this process may have asked for it
    energy = joules(device)
    start = _now(device)
    schedule = ReferenceSchedule(workload.weights, HybridGLConfig(), device)
    left_out = _now(device) - start
    with tempfile.TemporaryDirectory(dir=workload.folder) as folder:
        forget_peaks(device)
        with collect(_wait(device)) as stages:
            start = _now(device)
            schedule.save_maps(split, Path(folder))
            middle = _now(device)
            predictions = schedule.predict(split, drawn, Path(folder))
            end = _now(device)
    peak, device_peak = peaks(device)
    return Measurement(
        seconds=end - start,
        maps_seconds=middle - start,
        stages=stages,
        left_out=left_out,
        peak_bytes=peak,
        device_peak_bytes=device_peak,
        joules=_since(energy, device),
        predictions={f"{ref} {sentence}": found for (ref, sentence), found in predictions.items()},
    )


def run_ours(workload: Workload, kind: Kind, output: Path, *, staged: bool = True) -> Measurement:
    """Run our programs on all images.

    Args:
        workload: the data and models.
        kind: how they are run.
        output: gets what the second program writes.
        staged: on a GPU, run a cold kind again to time its stages.
    """
    device = workload.torch_device
    store = workload.folder / "stores" / kind.store
    forget_peaks(device)
    energy = joules(device)
    with collect() as stages:
        seconds, maps_seconds = _run_programs(workload, kind, store, output, stages)
    taken = _since(energy, device)
    peak, device_peak = peaks(device)
    left_out = _pop_left_out(stages)
    if staged and kind.cold and device.type == "cuda":
        # On a GPU each stage is awaited to be timed: not in the run that counts.
        with (
            tempfile.TemporaryDirectory(dir=workload.folder) as name,
            collect(_wait(device)) as stages,
            # Else a stage of one thread would wait for those of the other.
            patch.object(evaluate, "_overlaps", lambda _: False),
        ):
            _run_programs(workload, kind, Path(name, "store"), Path(name, "output"), stages)
        _pop_left_out(stages)
    return Measurement(
        seconds=seconds,
        maps_seconds=maps_seconds,
        stages=stages,
        left_out=left_out,
        peak_bytes=peak,
        device_peak_bytes=device_peak,
        joules=taken,
        predictions={
            f"{record.ref_id} {record.sent_id}": (
                record.predictions["features"].proposal,
                record.predictions["guided"].proposal,
            )
            for record in read_records(output / "records.jsonl")
        },
    )


def _run_programs(
    workload: Workload, kind: Kind, store: Path, output: Path, stages: Mapping[str, float]
) -> tuple[float, float]:
    """Return the seconds of the programs, and of the one that writes maps alone."""
    device = workload.torch_device

    def counted() -> float:
        return _now(device) - sum(stages.get(name, 0.0) for name in LEFT_OUT)

    class DrawnSource(SamSource):
        """Drawn masks that take the place of SAM's, which are made all the same."""

        def submit(self, images: Sequence[tuple[int, RgbImage]]) -> list[Finish]:
            def finish(image_id: int, of_sam: Finish) -> Proposals:
                of_sam()
                return drawn_masks(image_id, workload.masks)

            made = zip(images, super().submit(images), strict=True)
            return [partial(finish, image_id, of_sam) for (image_id, _), of_sam in made]

        def settings(self) -> dict[str, Any]:
            return {**super().settings(), "drawn": workload.masks}

    flags = [*workload.flags, "--store", str(store), *kind.flags]
    maps_seconds = 0.0
    with (
        redirect_stdout(io.StringIO()),
        patch.object(runs, "SamSource", DrawnSource),
        patch.object(runs, "draw_samples", lambda *_: None),
    ):
        if kind.cold:
            start = counted()
            of_maps = [flag for flag in flags if flag != "--keep_tokens"]
            save_attn_gem.run(save_attn_gem.build_parser().parse_args(of_maps))
            maps_seconds = counted() - start
        arguments = hybridgl_main.build_parser().parse_args([*flags, "--output", str(output)])
        methods = hybridgl_main.METHODS
        run = runs.Run(runs.RunConfig.from_arguments(arguments, methods), methods)
        start = counted()
        run.execute()
        return maps_seconds + counted() - start, maps_seconds


def _pop_left_out(stages: dict[str, float]) -> float:
    return sum(stages.pop(name, 0.0) for name in LEFT_OUT)


def _since(energy: float | None, device: torch.device) -> float | None:
    """Return the joules that a GPU has taken since."""
    now = joules(device)
    return None if energy is None or now is None else now - energy


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _wait(device: torch.device) -> Any:
    return torch.cuda.synchronize if device.type == "cuda" else None


def equal_percent(first: Measurement, second: Measurement) -> list[float]:
    """Return the share of sentences with equal predictions, by features alone and guided.

    Of the sentences that both have.
    """
    keys = first.predictions.keys() & second.predictions.keys()
    pairs = [(first.predictions[key], second.predictions[key]) for key in keys]
    return [100 * sum(a[i] == b[i] for a, b in pairs) / len(pairs) for i in (0, 1)]


def compared(measured: Mapping[str, Measurement], images: int) -> list[dict[str, Any]]:
    """Return the runs as JSON values, each compared with what it can be compared with."""
    rows = []
    for name, one in measured.items():
        kind = KINDS.get(name)
        # With maps in the store, the reference schedule would not make them again either.
        reference = measured[REFERENCE]
        plain = reference.seconds - reference.maps_seconds * (kind is not None and not kind.cold)
        other = kind.compared_with if kind else None
        row: dict[str, Any] = {
            "run": name,
            "compared with": other,
            "seconds": one.seconds,
            "left out s": one.left_out,
            "images/s": images / one.seconds,
            "sentences/s": len(one.predictions) / one.seconds,
            "times faster": plain / one.seconds,
            "peak MB": one.peak_bytes / 1e6,
            "GPU MB": one.device_peak_bytes and one.device_peak_bytes / 1e6,
        }
        equal = equal_percent(measured[other], one) if other else [None, None]
        row["equal predictions, features %"], row["guided %"] = equal
        rows.append(row)
    return rows


def compared_stages(measured: Mapping[str, Measurement], images: int) -> list[dict[str, Any]]:
    """Return seconds per image of the stages of the cold runs, as JSON values."""
    cold = {name: one for name, one in measured.items() if name in (REFERENCE, OURS, OURS_BFLOAT16)}
    rows: list[dict[str, Any]] = []
    for stage in dict.fromkeys(stage for one in cold.values() for stage in one.stages):
        seconds = {name: one.stages.get(stage) for name, one in cold.items()}
        each = {name: total and total / images for name, total in seconds.items()}
        rows.append({"stage, s per image": stage, **each})
    whole = {name: one.seconds / images for name, one in cold.items()}
    return [*rows, {"stage, s per image": "all", **whole}]


def report(workload: Workload) -> dict[str, Any]:
    """Do all runs, print their tables, and return them as JSON values."""
    measured: dict[str, Measurement] = {}
    for name in (REFERENCE, *KINDS):
        sys.stderr.write(f"{name} ...\n")
        output = workload.folder / "outputs" / str(len(measured))
        measured[name] = (
            run_ours(workload, KINDS[name], output) if name in KINDS else run_reference(workload)
        )
    rows = compared(measured, workload.images)
    stages = compared_stages(measured, workload.images)
    hours = {row["run"]: IMAGES_OF_VAL / row["images/s"] / 3600 for row in rows}
    print(f"{table(rows, 2)}\n\n{table(stages)}\n")
    print(
        f"Extrapolated, not measured: RefCOCO val's {IMAGES_OF_VAL:,} images would take "
        f"{hours[OURS]:.1f} hours, in bfloat16 {hours[OURS_BFLOAT16]:.1f}, the reference schedule "
        f"{hours[REFERENCE]:.1f}."
    )
    return {"runs": rows, "stages": stages, "extrapolated_hours": hours}


def compare_checkouts(workload: Workload, other: Path, pairs: int, flags: Sequence[str]) -> str:
    """Run the programs of this checkout and of another one in turn, each with a cold store.

    Args:
        workload: the data, unless ``flags`` name others.
        other: the root of a checkout.
        pairs: how many times each side runs.
        flags: of both programs, which name data and models; with none, those of the workload, whose
            drawn masks are read from a file in a third run.

    Returns:
        A table of medians.
    """
    sides = {"this": Path(__file__).parents[1], "other": other.resolve()}
    commands: dict[str, tuple[str, ...]] = {
        "maps": ("save_attn_gem.py",),
        "run": ("hybridgl_main.py",),
    }
    if not flags:
        drawn = ("--proposals", f"coco:{workload.proposal_file}")
        commands["run, drawn masks"] = ("hybridgl_main.py", *drawn)
    used: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for pair in range(pairs):
        for side in sides if pair % 2 else reversed(sides):
            with tempfile.TemporaryDirectory(dir=workload.folder) as folder:
                for place, (name, words) in enumerate(commands.items()):
                    command = [sys.executable, *words, *(flags or workload.flags)]
                    command += ["--store", f"{folder}/store"]
                    command += ["--output", f"{folder}/{place}"] * (place > 0)
                    used.setdefault((name, side), []).append(_used(command, sides[side]))
            sys.stderr.write(f"pair {pair + 1}, {side}: {[u[-1] for u in used.values()]}\n")
    rows = []
    for name in commands:
        row: dict[str, Any] = {"program": name}
        for index, unit in enumerate(("wall s", "CPU s", "peak MB")):
            this, old = (median(u[index] for u in used[name, side]) for side in sides)
            row |= {unit: this, f"other {unit}": old, f"{unit}, this / other": this / old}
        rows.append(row)
    return table(rows)


def _used(command: Sequence[str], root: Path) -> tuple[float, float, float]:
    """Return wall seconds, CPU seconds and peak megabytes of a program."""
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} failed in {root}; its message is above.")
    seconds = time.perf_counter() - start
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes",
        choices=["real", "tiny"],
        default="real",
        help="of the models; tiny: the bundled ones (default: %(default)s)",
    )
    parser.add_argument(
        "--sam_type", choices=["vit_b", "vit_l", "vit_h"], default="vit_b", help="(default: vit_b)"
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="of the dataset (default: 3; on a GPU 100)"
    )
    parser.add_argument("--masks", type=int, default=32, help="of every image (default: 32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--output", type=Path, metavar="FILE", help="measurements as JSON")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="compare with another checkout's programs"
    )
    parser.add_argument("--pairs", type=int, default=3, help="of such runs (default: 3)")
    parser.add_argument(
        "--flags", default="", help="of such runs, as '--dataset shapes' (default: generated data)"
    )
    arguments = parser.parse_args(argv)
    on_gpu = select_device(arguments.device).type == "cuda"
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(
            sizes=arguments.sizes,
            sam_type=arguments.sam_type,
            images=arguments.images or (100 if on_gpu else 3),
            masks=arguments.masks,
            device=arguments.device,
            folder=Path(folder),
        )
        workload.write()
        header = {
            **machine(workload.torch_device),
            "sizes": workload.sizes,
            "SAM": workload.weights.sam_type,
            "images": workload.images,
            "masks": workload.masks,
        }
        print(", ".join(f"{name} {value}" for name, value in header.items()), end="\n\n")
        if arguments.against:
            flags = arguments.flags.split()
            print(compare_checkouts(workload, arguments.against, arguments.pairs, flags))
            return
        found = report(workload)
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": header, **found}, indent=2))


if __name__ == "__main__":
    main()
