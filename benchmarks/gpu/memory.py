"""Most memory that tensors take, beside what the program assumes when it chooses batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.data import drawn_masks
from benchmarks.gpu.measurements import Measurements
from benchmarks.gpu.stages import Bench
from benchmarks.stages import forget_peaks, peaks
from hybridgl.config import SAM_SETTINGS, ProposalConfig
from hybridgl.models.sam import image_and_point_bytes
from hybridgl.models.sam_encoder import encode

__all__ = ["measure_memory"]


def measure_memory(
    log: Measurements, bench: Bench, settings: Sequence[str], masks: Sequence[int]
) -> None:
    """Take all measurements of this part.

    Args:
        log: gets them.
        bench: models.
        settings: of SAM's mask generator, by name.
        masks: numbers of an image's masks.
    """

    def propose(config: ProposalConfig) -> Any:
        return [finish() for finish in bench.generator(config).submit([bench.image_HW3])]

    for name in settings:
        proposed = partial(_peak, partial(propose, SAM_SETTINGS[name]), bench)
        log.measure("memory", f"SAM, {name}'s settings", proposed)
    for count in masks:
        features = partial(bench.features, drawn_masks(0, count).masks_NHW)
        log.measure("memory", f"features of {count} masks", partial(_peak, features, bench))
    log.measure("memory", "one item", partial(_items, bench))


@torch.inference_mode()
def _peak(call: Callable[[], Any], bench: Bench) -> dict[str, Any]:
    """Return the most memory during a call, and what was there before it."""
    on_gpu = bench.device.type == "cuda"
    forget_peaks(bench.device)
    before = torch.cuda.memory_allocated(bench.device) if on_gpu else None
    call()
    process, device = peaks(bench.device)
    return {
        "GPU MB": device and device / 1e6,
        "GPU MB before": before and before / 1e6,
        "process MB": process / 1e6,
    }


def _items(bench: Bench) -> dict[str, Any]:
    """Return what one more item of a batch takes, by a GPU's memory, and what is assumed."""
    image_bytes, point_bytes = image_and_point_bytes(bench.workload.weights.sam_type)
    sizes = bench.models.batches.sizes
    assumed = {"image": image_bytes / 1e6, "point": point_bytes / 1e6}
    if bench.device.type != "cuda":
        return {"assumed MB": assumed, "measured MB": None, "sizes": str(sizes)}

    def taken(call: Callable[[int], Any], few: int, many: int) -> float:
        found = []
        for count in (few, many):
            measured = _peak(partial(call, count), bench)
            found.append(measured["GPU MB"] - measured["GPU MB before"])
        return (found[1] - found[0]) / (many - few)

    def images(count: int) -> Any:
        return encode(bench.sam.image_encoder, bench.images(count))

    def points(count: int) -> Any:
        return bench.decoder(32, bench.batches(points=count)).submit([bench.image_HW3])

    def masks(count: int) -> Any:
        return bench.features(drawn_masks(0, count).masks_NHW, count)

    measured = {
        "image": taken(images, 4, 12),
        "point": taken(points, 64, 256),
        "mask": taken(masks, 16, 64),
    }
    return {"assumed MB": assumed, "measured MB": measured, "sizes": str(sizes)}
