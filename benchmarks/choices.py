"""Choices of how a CPU computes, each beside what it replaces.

Linear layers as 1 x 1 convolutions (``hybridgl.models.transformer.linear``) beside torch's own, on
the layers of a block of ViT-B/16; and SAM ViT-B's masks of an image with freed memory kept
(``utils.runtime.keep_freed_memory``) beside the same before that was asked for. Repetitions of the
first two alternate; those of the last two cannot, for what glibc was asked for stays.

And the same layers while as many busy loops run as there are cores, the mean of all repetitions:
with threads that sleep while they wait (``OMP_WAIT_POLICY``, which torch reads when it loads, so
that each is a process of its own, in turn), with threads that spin, and with one thread.

Example:
    python -m benchmarks.choices
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from os import cpu_count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.stages import sam_generator
from hybridgl.models.transformer import linear
from hybridgl.program import keep_freed_memory
from utils.tables import Table

IMAGES = 4
"""Whose tokens go through a layer together: few, so that some calls meet an idle machine."""

LAYERS = {"qkv": (768, 2304), "out": (768, 768), "up": (768, 3072), "down": (3072, 768)}
"""Input and output width of the layers of a residual block of ViT-B/16."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one call, the best of the repetitions.

    Attributes:
        seconds: on the clock.
        cpu_seconds: of all threads.
    """

    seconds: float
    cpu_seconds: float

    @classmethod
    def of(cls, call: Callable[[], object]) -> Cost:
        """Time one call."""
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        return cls(time.perf_counter() - wall, time.process_time() - cpu)

    @classmethod
    def best(cls, costs: Iterable[Cost]) -> Cost:
        """Return the least of each."""
        walls, cpus = zip(*((cost.seconds, cost.cpu_seconds) for cost in costs), strict=True)
        return cls(min(walls), min(cpus))


def linear_layers(repeats: int) -> tuple[Cost, Cost]:
    """Time the linear layers of one block: as convolutions, and torch's own."""
    rows = IMAGES * 197
    layers = [(torch.randn(rows, c), torch.randn(e, c), torch.randn(e)) for c, e in LAYERS.values()]

    def run(product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        for x, weight, bias in layers:
            product(x, weight, bias)

    pairs = [(Cost.of(lambda: run(linear)), Cost.of(lambda: run(F.linear))) for _ in range(repeats)]
    ours, plain = zip(*pairs, strict=True)
    return Cost.best(ours), Cost.best(plain)


def kept_memory(repeats: int) -> tuple[Cost, Cost]:
    """Time SAM's masks of an image on one thread: freed memory kept, and given back."""
    torch.set_num_threads(1)
    work = sam_generator("refcoco")(0, Path())

    def run() -> Cost:
        return Cost.best(Cost.of(work.run) for _ in range(repeats))

    plain = run()
    keep_freed_memory()
    return run(), plain


_LAYER_REPEATS = 100

BUSY = {
    "threads that sleep while they wait": {"OMP_WAIT_POLICY": "PASSIVE"},
    "threads that spin": {"OMP_WAIT_POLICY": "ACTIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""Environments of a process on cores that others use too."""


def on_busy_cores(repeats: int) -> dict[str, Cost]:
    """Time the layers of one block beside busy loops, the best of some processes in turn."""
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(cpu_count() or 1)
    ]
    costs: dict[str, list[Cost]] = {name: [] for name in BUSY}
    try:
        for _ in range(repeats):
            for name, environment in BUSY.items():
                result = subprocess.run(
                    [sys.executable, "-m", "benchmarks.choices", "--linear_layers"],
                    env={**os.environ, **environment},
                    check=True,
                    capture_output=True,
                    text=True,
                )
                costs[name].append(Cost(*json.loads(result.stdout)))
    finally:
        for one in loops:
            one.kill()
    return {name: Cost.best(some) for name, some in costs.items()}


def main() -> None:
    """Measure the choices and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--linear_layers", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().linear_layers:
        cost = Cost.of(lambda: linear_layers(_LAYER_REPEATS))
        print(json.dumps([part / _LAYER_REPEATS for part in (cost.seconds, cost.cpu_seconds)]))
        return
    print(f"{date.today()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    header = ("choice, and what it replaces", "seconds", "CPU seconds")
    rows: list[tuple[str, ...]] = []
    with torch.inference_mode():
        for names, costs in (
            (
                ("linear layers as convolutions", "torch's linear layers"),
                linear_layers(_LAYER_REPEATS),
            ),
            (
                (
                    "SAM on one thread, freed memory kept",
                    "SAM on one thread, freed memory given back",
                ),
                kept_memory(3),
            ),
        ):
            for name, cost in zip(names, costs, strict=True):
                rows.append((name, f"{cost.seconds:.4f}", f"{cost.cpu_seconds:.4f}"))
    for name, cost in on_busy_cores(3).items():
        rows.append((f"busy cores, {name}", f"{cost.seconds:.4f}", f"{cost.cpu_seconds:.4f}"))
    print(Table(header=header, rows=tuple(rows)).markdown())


if __name__ == "__main__":
    main()
