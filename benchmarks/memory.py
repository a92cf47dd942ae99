"""How memory grows with masks and with sentences, and what PhraseCut's proposals take.

Each call runs in a process of its own, at real size with random weights. Linux tells the peak.

Example:
    python -m benchmarks.memory --output memory.json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything import SamPredictor

from benchmarks.generated_data import HW, Setting, drawn_masks, write_files
from benchmarks.reference_schedule import build_sam, read_state
from hybridgl.config import PROPOSALS_PHRASECUT, MethodConfig
from hybridgl.images import RgbImage
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.models import Models, sam_generator
from hybridgl.models.sam import Sam
from hybridgl.program import keep_freed_memory
from utils.tables import Table

__all__ = ["forget_peaks", "megabytes", "peaks"]

MASK_COUNTS = (8, 32, 128)
SENTENCE_COUNTS = (7, 28, 112)
"""One, four and sixteen times as many."""


def forget_peaks(device: torch.device) -> None:
    """Give back memory that is not in use, and measure peaks anew from here (on Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> tuple[int, int | None]:
    """Most memory since then, in bytes: of the process, and of tensors on the GPU."""
    on_gpu = device.type == "cuda"
    return status("VmHWM"), torch.cuda.max_memory_allocated(device) if on_gpu else None


def status(name: str) -> int:
    """A size of this process in bytes, by its name in Linux's /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def megabytes(size: int | None) -> str:
    """A size in MB, or a dash."""
    return "-" if size is None else f"{size / 1e6:.0f}"


def memory_of_masks(count: int, setting: Setting) -> dict[str, Any]:
    """Memory of the features of some masks of one image."""
    model, image = _model(setting), _first_image(setting)
    masks_NHW = drawn_masks(0, count).masks_NHW
    return _memory(lambda: model.compute_features(image.pixels_HW3, masks_NHW), setting)


def memory_of_sentences(count: int, setting: Setting) -> dict[str, Any]:
    """Memory of the scores of some sentences on one image with the fewest masks."""
    model, image = _model(setting), _first_image(setting)
    proposals = drawn_masks(0, MASK_COUNTS[0])
    expressions = model.parse([f"the red circle left of the {n}th disc" for n in range(count)])
    return _memory(lambda: model.score(image, proposals, expressions), setting)


def memory_of_phrasecut(setting: Setting) -> dict[str, Any]:
    """Memory of SAM's generator as PhraseCut has it, half of whose masks pass the predicted IoU."""
    files, image = setting.weights, _first_image(setting)
    sam = build_sam(files.sam_type)
    sam.load_state_dict(read_state(files.sam_checkpoint))
    # With 0 as threshold the filter would be off, and random weights predict about 0.
    sam.mask_decoder.iou_prediction_head.layers[-1].bias.data += 1
    sam = sam.eval().requires_grad_(False).to(setting.torch_device)
    config = replace(
        PROPOSALS_PHRASECUT,
        pred_iou_thresh=_median_iou(sam, image),
        stability_score_thresh=0.0,
    )
    proposer = Sam(sam, setting.torch_device)
    return _memory(lambda: proposer.propose(image.pixels_HW3, config), setting)


@torch.inference_mode()
def _median_iou(sam: Any, image: RgbImage) -> float:
    """The IoU that half of the masks of an image are predicted to have."""
    predictor = SamPredictor(sam)
    predictor.set_image(image.pixels_HW3)
    points_P2 = sam_generator.point_grid(8) * HW[::-1]
    scaled_P2 = predictor.transform.apply_coords(points_P2, HW)
    points = torch.as_tensor(scaled_P2, device=predictor.device)[:, None]
    labels = torch.ones(points.shape[:2], dtype=torch.int, device=predictor.device)
    _, iou_PM, _ = predictor.predict_torch(points, labels)
    return float(iou_PM.median())


def _model(setting: Setting) -> HybridGL:
    """Our model, loaded, without a store."""
    model = HybridGL(Models(setting.weights, device=setting.torch_device), MethodConfig())
    model.load()
    return model


def _first_image(setting: Setting) -> RgbImage:
    """The first image, decoded."""
    split = setting.split()
    image = RgbImage(split.image_path(next(iter(split.images))))
    _ = image.pixels_HW3
    return image


def _memory(run: Callable[[], object], setting: Setting) -> dict[str, Any]:
    """Peak memory of a call in bytes, and how much of it is above what was there before."""
    forget_peaks(setting.torch_device)
    before, start = status("VmRSS"), time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    peak, device_peak = peaks(setting.torch_device)
    return {
        "seconds": seconds,
        "peak_bytes": peak,
        "above_bytes": peak - before,
        "device_peak_bytes": device_peak,
    }


CALLS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    **{f"features of {n} masks": partial(memory_of_masks, n) for n in MASK_COUNTS},
    **{f"scores of {n} sentences": partial(memory_of_sentences, n) for n in SENTENCE_COUNTS},
    "SAM with PhraseCut's settings": memory_of_phrasecut,
}


def memory_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Peak memory of calls as text."""
    return Table(
        header=("call", "seconds", "MB above what was there", "peak MB", "GPU MB"),
        rows=tuple(
            (
                name,
                f"{row['seconds']:.2f}",
                f"{row['above_bytes'] / 1e6:.0f}",
                f"{row['peak_bytes'] / 1e6:.0f}",
                megabytes(row["device_peak_bytes"]),
            )
            for name, row in rows.items()
        ),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every call in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", choices=["real", "tiny"], default="real", help="of the models")
    parser.add_argument("--sam_type", choices=["vit_b", "vit_l", "vit_h"], default="vit_b")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--output", type=Path, metavar="FILE", help="measurements as JSON")
    parser.add_argument("--call", choices=list(CALLS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(
            sizes=arguments.sizes,
            sam_type=arguments.sam_type,
            images=1,
            masks=max(MASK_COUNTS),
            device=arguments.device,
            folder=arguments.folder or Path(scratch),
        )
        if arguments.call:
            keep_freed_memory()
            print(json.dumps(CALLS[arguments.call](setting)))
            return
        write_files(setting)
        rows = {name: _in_a_process(name, setting) for name in CALLS}
    print(memory_table(rows).markdown())
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=2))


def _in_a_process(name: str, setting: Setting) -> dict[str, Any]:
    sys.stderr.write(f"{name} ...\n")
    command = [sys.executable, "-m", "benchmarks.memory", "--call", name]
    command += ["--sizes", setting.sizes, "--sam_type", setting.sam_type]
    command += ["--device", setting.device, "--folder", str(setting.folder)]
    root = Path(__file__).parents[1]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
