"""Whether a device computes what a CPU does: golden vectors, and every prediction on shapes val.

Masks are the bundled SAM's own, made on each device, so that both models take part. Two predictions
are equal where the IoU of their masks is at least 0.95; how many are so to the pixel is told too.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

import hybridgl_main
from benchmarks.gpu.measurements import Deferred, Measurements
from evaluation import run as runs
from evaluation.records import Record, write_records
from hybridgl.methods import Prediction
from refer.dataset import Ref
from scripts.check_golden import compare_folder

__all__ = ["COMPILED", "FORMATS", "Predictions", "compare", "golden", "measure_exact"]

VARIANTS = ("features", "guided")
"""Variants that are compared."""

FORMATS: Mapping[str, tuple[str, ...]] = {
    "float32": (),
    "TF32": ("--tf32",),
    "bfloat16 encoder": ("--dtype", "bfloat16"),
    "bfloat16 encoder, TF32": ("--dtype", "bfloat16", "--tf32"),
}
"""Flags of the number formats."""

COMPILED = ("--compile",)

_SAME_IOU = 0.95
"""Least IoU of two masks that are one, but for pixels whose logits are about 0, at its edge."""


def golden(folder: Path, device: torch.device) -> dict[str, Any]:
    """Compare with golden vectors, without TF32."""
    report = compare_folder(folder, device)
    return {
        "within tolerance": sum(row.passed for row in report.comparisons),
        "of": len(report.comparisons),
        "largest error": max(row.error for row in report.comparisons),
        "tolerance": report.comparisons[0].tolerance,
        "wrong": [f"{row.file} {row.subject}" for row in report.comparisons if not row.passed],
        "not compared": list(report.not_compared),
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """A sentence's prediction, with what it was made from."""

    ref: Ref
    sentence: str
    prediction: Prediction
    masks_NHW: NDArray[np.bool_]

    def mask(self, variant: str) -> NDArray[np.bool_]:
        """Return the predicted mask; empty without proposals."""
        index = self.prediction.proposals.get(variant)
        chosen = slice(0) if index is None else slice(index, index + 1)
        return np.asarray(self.masks_NHW[chosen].any(axis=0))

    def margin(self, variant: str) -> float | None:
        """Return how far the prediction is ahead of the next one; None without another one."""
        choice, scores = self.prediction.choice, self.prediction.similarity_N
        if variant == "guided" and choice is not None:
            scores = choice.final_K
        if scores is None or len(scores) < 2:
            return None
        next_best, best = np.sort(scores)[-2:]
        return float(best - next_best)


class Predictions:
    """Everything that a run on the shapes world predicts.

    Args:
        data_root: holds the world.
        folder: gets the store; what it holds is used.
        flags: of the program, besides those that name data.
    """

    def __init__(self, data_root: Path, folder: Path, flags: Sequence[str]) -> None:
        given = ["--dataset", "shapes", "--split", "val", "--refer_data_root", str(data_root)]
        given += ["--store", str(folder / "store"), "--output", str(folder / "output"), *flags]
        methods = hybridgl_main.METHODS
        arguments: argparse.Namespace = hybridgl_main.build_parser().parse_args(given)
        self._run = runs.Run(runs.RunConfig.from_arguments(arguments, methods), methods)
        with (
            redirect_stdout(io.StringIO()),
            patch.object(runs, "draw_samples", lambda *_: None),
        ):
            self._run.execute()

    @cached_property
    def records(self) -> list[Record]:
        """The run's records."""
        return [record for record, _ in self._run.evaluation.records()]

    @cached_property
    def samples(self) -> list[_Sample]:
        """Every sentence, in the order of the records."""
        evaluation, split = self._run.evaluation, self._run.split
        with torch.inference_mode():
            masks = {
                image_id: evaluation.source.submit([(image_id, split.open_image(image_id))])[0]()
                for image_id in split.images
            }
        refs = {ref.ref_id: ref for ref in split.refs}
        return [
            _Sample(
                refs[record.ref_id],
                record.sentence,
                evaluation.predict(refs[record.ref_id], record.sent_id, limit),
                masks[record.image_id].masks_NHW,
            )
            for record, limit in evaluation.records()
        ]

    def records_bytes(self, path: Path) -> bytes:
        """Return the records as they are written to a file."""
        write_records(path, self.records)
        return path.read_bytes()


def compare(first: Predictions, second: Predictions) -> dict[str, Any]:
    """Count the predictions that are equal, of each variant.

    Returns:
        By variant: how many are equal, how many of these to the pixel, of how many, and those that
        differ with their margins in the first run.
    """
    pairs = list(zip(first.samples, second.samples, strict=True))
    return {variant: _compared(pairs, variant) for variant in VARIANTS}


def _compared(pairs: Sequence[tuple[_Sample, _Sample]], variant: str) -> dict[str, Any]:
    ious = [_iou(one.mask(variant), other.mask(variant)) for one, other in pairs]
    differing = [
        {
            "image": one.ref.image_id,
            "sentence": one.sentence,
            "IoU": iou,
            "margin": one.margin(variant),
        }
        for (one, _), iou in zip(pairs, ious, strict=True)
        if iou < _SAME_IOU
    ]
    return {
        "equal": len(pairs) - len(differing),
        "to the pixel": sum(iou == 1 for iou in ious),
        "of": len(pairs),
        "differing": differing,
    }


def _nms(device: torch.device) -> dict[str, Any]:
    """Leave one of two equal boxes out, which a torchvision for CPUs alone cannot, nor SAM then."""
    boxes_34 = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [20, 20, 30, 30]], device=device)
    kept = nms(boxes_34, torch.tensor([1.0, 2, 3], device=device), 0.5)
    return {"kept": sorted(kept.tolist())}


def _iou(first_HW: NDArray[np.bool_], second_HW: NDArray[np.bool_]) -> float:
    union = int((first_HW | second_HW).sum())
    return int((first_HW & second_HW).sum()) / union if union else 1.0


def measure_exact(
    log: Measurements, *, data_root: Path, folder: Path, golden_folder: Path, device: str
) -> list[Deferred]:
    """Take all measurements of this part, and return that of compiled encoders.

    Args:
        log: gets them.
        data_root: holds the shapes world.
        folder: gets the stores.
        golden_folder: golden vectors.
        device: "cpu", "cuda" or "cuda:i".
    """

    def predictions(name: str, *flags: str, on: str = device) -> Predictions:
        return Predictions(data_root, folder / name, ["--device", on, *flags])

    log.measure("exact", "torchvision's NMS", partial(_nms, torch.device(device)))
    log.measure("exact", "golden vectors", lambda: golden(golden_folder, torch.device(device)))
    kept: dict[str, Predictions] = {}

    def on_cpu() -> dict[str, Any]:
        kept["cpu"] = predictions("cpu", on="cpu")
        return {"sentences": len(kept["cpu"].samples)}

    def twice() -> dict[str, Any]:
        first = kept["float32"].records_bytes(folder / "first.jsonl")
        second = predictions("float32 again").records_bytes(folder / "second.jsonl")
        return {"same records": first == second, "records": len(kept["float32"].records)}

    def on_device(name: str, flags: Sequence[str]) -> dict[str, Any]:
        if "cpu" not in kept:
            raise LookupError("there are no predictions of the CPU to compare with")
        kept[name] = predictions(name, *flags)
        return compare(kept["cpu"], kept[name])

    log.measure("exact", "shapes val on the CPU", on_cpu)
    for name, flags in FORMATS.items():
        if "--tf32" in flags and log.leave_out_tf32("exact", name, torch.device(device)):
            continue
        log.measure("exact", name, partial(on_device, name, flags))
        if not flags:
            log.measure("exact", "two runs", twice)
    return [Deferred("exact", "compiled", partial(on_device, "compiled", COMPILED), 90)]
