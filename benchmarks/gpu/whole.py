"""A whole run at real size, beside the order of work of the released program, in one process."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.data import REFS_PER_IMAGE, SENTENCES_PER_REF, Workload
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

HEADLINE = "fast (bfloat16 encoder, TF32)"

KINDS: Mapping[str, tuple[str, ...]] = {HEADLINE: FAST, "float32": ()}
"""Flags of our runs."""

COMPILED = {"fast, compiled": (*FAST, "--compile")}

REFERENCE = "reference schedule"


def measure_run(log: Measurements, workload: Workload, reference_images: int) -> list[Deferred]:
    """Time the reference schedule on a few images, our programs on all, from empty stores.

    What the reference schedule takes for an image is its seconds for a ref and for a sentence,
    times the mean number of these, as a few images may have more of them than most.

    Args:
        log: gets them.
        workload: written.
        reference_images: of the reference schedule.

    Returns:
        Our programs with compiled encoders.
    """
    measured: dict[str, Measurement] = {}
    stores = itertools.count()

    def reference() -> dict[str, Any]:
        if workload.torch_device.type == "cuda":
            run_reference(workload, 1)  # loads libraries and kernels, which both sides use
        measured[REFERENCE] = one = run_reference(workload, reference_images)
        return _row(one, reference_images, _reference_seconds(one))

    def ours(name: str, flags: Sequence[str]) -> dict[str, Any]:
        kind = Kind(tuple(flags), store=f"{name} {next(stores)}", cold=True)
        output = workload.folder / "outputs" / kind.store
        one = run_ours(workload, kind, output, staged=name == HEADLINE)
        found = _row(one, workload.images, one.seconds / workload.images)
        if REFERENCE in measured:
            other = measured[REFERENCE]
            features, guided = equal_percent(other, one)
            found["times faster"] = _reference_seconds(other) / found["s/image"]
            found |= {"equal, features %": features, "equal, guided %": guided}
        return found

    def compiled(name: str, flags: Sequence[str]) -> dict[str, Any]:
        first = ours(name, flags)  # compiles
        return {**ours(name, flags), "s/image of the run that compiles": first["s/image"]}

    log.measure("run", REFERENCE, reference)
    for name, flags in KINDS.items():
        if "--tf32" in flags and log.leave_out_tf32("run", name, workload.torch_device):
            continue
        log.measure("run", name, partial(ours, name, flags))
    return [
        Deferred("run", name, partial(compiled, name, flags), 90)
        for name, flags in COMPILED.items()
    ]


def _reference_seconds(one: Measurement) -> float:
    """Return the seconds of an image with as many refs and sentences as RefCOCO's have."""
    refs = len({key.split()[0] for key in one.predictions})
    for_ref = (one.seconds - one.maps_seconds) / refs
    for_sentence = one.maps_seconds / len(one.predictions)
    return REFS_PER_IMAGE * (for_ref + SENTENCES_PER_REF * for_sentence)


def _row(one: Measurement, images: int, each: float) -> dict[str, Any]:
    return {
        "images": images,
        "s/image": each,
        "times faster": None,
        "equal, features %": None,
        "equal, guided %": None,
        "joules, loading included": one.joules,
        "GPU MB": one.device_peak_bytes and one.device_peak_bytes / 1e6,
        "process MB": one.peak_bytes / 1e6,
        f"extrapolated: minutes of {IMAGES_OF_VAL} images": each * IMAGES_OF_VAL / 60,
        "stages, s/image": {stage: total / images for stage, total in one.stages.items()},
    }
