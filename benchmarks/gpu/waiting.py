"""How long a device has nothing to do, and where the host waits for it.

A host may wait for a GPU a few times an image; what it must not do is wait in a loop over masks,
point prompts or sentences. So the waits of one image are counted with few of them and with many:
the counts must be equal.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.data import Workload, drawn_masks
from benchmarks.end_to_end import Kind, run_ours
from benchmarks.gpu.measurements import Measurements
from benchmarks.gpu.operations import RecordOperations
from benchmarks.gpu.parses import stored_sentences
from benchmarks.gpu.stages import Bench
from benchmarks.gpu.whole import FAST
from hybridgl.images import RgbImage

__all__ = ["awaited", "busy_seconds", "measure_waiting"]

_TRACE_LINES = 12


def awaited(call: Callable[[], Any], device: torch.device) -> Counter[str]:
    """Count where the host waits for the device during a call: by line on a GPU, by operation else.

    Args:
        call: run twice: once to get ready.
        device: where it computes.
    """
    with torch.inference_mode():
        call()
        if device.type != "cuda":
            with RecordOperations() as recorded:
                call()
            return Counter(recorded.waiting)
        torch.cuda.synchronize(device)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    synchronizing = [one for one in caught if "synchroniz" in str(one.message)]
    return Counter(f"{Path(one.filename).name}:{one.lineno}" for one in synchronizing)


def busy_seconds(intervals: list[tuple[float, float]]) -> float:
    """Return the length of what intervals cover together.

    >>> busy_seconds([(0, 2), (1, 3), (5, 6)])
    4.0
    """
    covered, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        covered += max(stop - max(start, end), 0)
        end = max(end, stop)
    return float(covered)


def measure_waiting(log: Measurements, bench: Bench, images: int) -> None:
    """Take all measurements of this part.

    Args:
        log: gets them.
        bench: models.
        images: of the run whose trace is taken.
    """
    for name, call, few, many in _loops(bench):
        if name == "points" and bench.device.type != "cuda":
            # Of these the host waits by an event, which no CPU has: a test covers it.
            log.leave_out("waiting", f"waits, by {name}", "it needs a GPU")
            continue
        log.measure("waiting", f"waits, by {name}", partial(_growth, call, few, many, bench.device))
    if bench.device.type == "cuda":
        log.measure("waiting", "whole run", partial(_trace, bench.workload, images))
    else:
        log.leave_out("waiting", "whole run", "no profiler tells when a CPU is idle")


def _growth(
    call: Callable[[int], Any], few: int, many: int, device: torch.device
) -> dict[str, Any]:
    """Count waits with few items and with many."""
    less, more = (awaited(partial(call, count), device) for count in (few, many))
    return {
        f"of {few}": less.total(),
        f"of {many}": more.total(),
        "in a loop": dict(more - less),
        "where": dict(more),
    }


def _loops(bench: Bench) -> list[tuple[str, Callable[[int], Any], int, int]]:
    """Return what is called with few and with many items, by its name, in small batches."""

    def masks(count: int) -> Any:
        return bench.features(drawn_masks(0, count).masks_NHW, 2)

    def points(count: int) -> Any:
        return bench.decoder(int(count**0.5), bench.batches(points=8)).submit([bench.image_HW3])

    stored = cycle(stored_sentences())  # others each time: a text is encoded once

    def sentences(count: int) -> Any:
        some = list(islice(stored, count))
        return bench.method.score(RgbImage(bench.image_HW3), some, drawn_masks(0, 2))

    return [("masks", masks, 2, 6), ("points", points, 16, 64), ("sentences", sentences, 2, 6)]


def _trace(workload: Workload, images: int) -> dict[str, Any]:
    """Profile both programs on some images: how long the GPU computes, and what takes longest."""
    kind = Kind((*FAST, "--limit", str(images)), store="traced", cold=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        measured = run_ours(workload, kind, workload.folder / "outputs" / "traced", staged=False)
    kernels = [
        (event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in profile.events()
        if str(event.device_type).endswith("CUDA")
        # Weights on their way to the GPU, whose loading is left out of the run's seconds too.
        and not event.name.startswith("Memcpy HtoD (Pageable")
    ]
    if not kernels:
        raise RuntimeError("the profiler has seen nothing of the GPU")
    busy = busy_seconds([(start, end) for _, start, end in kernels])
    longest: Counter[str] = Counter()
    for name, start, end in kernels:
        longest[re.sub(r"[<(].*", "", name)[-60:]] += end - start
    return {
        "images": images,
        "s/image": measured.seconds / images,
        "device idle %": 100 * max(1 - busy / measured.seconds, 0),
        "longest kernels, % of busy": {
            name: 100 * seconds / busy for name, seconds in longest.most_common(_TRACE_LINES)
        },
    }
