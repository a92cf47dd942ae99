"""A whole run at real size, beside the order of work of the released program, in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.data import Workload
from benchmarks.end_to_end import (
    IMAGES_OF_VAL,
    Kind,
    Measurement,
    equal_percent,
    run_ours,
    run_reference,
)
from benchmarks.gpu.measurements import Deferred, Measurements

__all__ = ["FAST", "measure_run"]

FAST = ("--dtype", "bfloat16", "--tf32")

KINDS: Mapping[str, tuple[str, ...]] = {
    "fast (bfloat16 encoder, TF32)": FAST,
    "float32": (),
    "bfloat16 encoder": ("--dtype", "bfloat16"),
}
"""Flags of our runs."""

COMPILED = {"fast, compiled": (*FAST, "--compile")}

REFERENCE = "reference schedule"


def measure_run(log: Measurements, workload: Workload, reference_images: int) -> list[Deferred]:
    """Time the reference schedule on a few images, our programs on all, from empty stores.

    Args:
        log: gets them.
        workload: written.
        reference_images: of the reference schedule.

    Returns:
        Our programs with compiled encoders.
    """
    measured: dict[str, Measurement] = {}

    def reference() -> dict[str, Any]:
        if workload.torch_device.type == "cuda":
            run_reference(workload, 1)  # loads libraries and kernels, which both sides use
        measured[REFERENCE] = run_reference(workload, reference_images)
        return _row(measured[REFERENCE], reference_images)

    def ours(name: str, flags: Sequence[str]) -> dict[str, Any]:
        kind = Kind(tuple(flags), store=f"{name} {len(measured)}", cold=True)
        output = workload.folder / "outputs" / kind.store
        measured[name] = run_ours(workload, kind, output)
        found = _row(measured[name], workload.images)
        if REFERENCE in measured:
            other = measured[REFERENCE]
            faster = other.seconds / reference_images * workload.images / measured[name].seconds
            features, guided = equal_percent(other, measured[name])
            found["times faster"] = faster
            found |= {"equal, features %": features, "equal, guided %": guided}
        return found

    log.measure("run", REFERENCE, reference)
    for name, flags in KINDS.items():
        if "--tf32" in flags and log.leave_out_tf32("run", name, workload.torch_device):
            continue
        log.measure("run", name, partial(ours, name, flags))
    # The first of two runs compiles.
    return [
        Deferred("run", f"{name}{suffix}", partial(ours, name, flags), needed)
        for name, flags in COMPILED.items()
        for suffix, needed in ((", first run", 120), ("", 30))
    ]


def _row(one: Measurement, images: int) -> dict[str, Any]:
    each = one.seconds / images
    return {
        "images": images,
        "s/image": each,
        "times faster": None,
        "equal, features %": None,
        "equal, guided %": None,
        "joules/image, models loaded": one.joules and one.joules / images,
        "GPU MB": one.device_peak_bytes and one.device_peak_bytes / 1e6,
        "process MB": one.peak_bytes / 1e6,
        f"extrapolated: minutes of {IMAGES_OF_VAL} images": each * IMAGES_OF_VAL / 60,
        "stages, s/image": {stage: total / images for stage, total in one.stages.items()},
    }
