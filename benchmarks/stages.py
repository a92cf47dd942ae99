"""Seconds, operations and memory of stages at real size, with random weights, each alone.

Each runs in a process of its own, so that its peak memory is its own. SAM is ViT-B, and its
thresholds are lowered so that masks survive. Reading annotation files of the published sizes is a
stage too. Needs Linux, which reports the peak.

Example:
    python -m benchmarks.stages --masks 16 --output stages.json
    python -m benchmarks.stages --stages "read RefCOCO val" "check run lengths"
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
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamPredictor, sam_model_registry
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data import (
    HW,
    drawn_masks,
    outlines,
    random_clip_state,
    random_sam_state,
    write_phrasecut,
    write_refcoco,
)
from hybridgl.config import (
    SAM_SETTINGS,
    FusionConfig,
    FusionMode,
    GlobalLocalConfig,
    HybridGLConfig,
    ReferenceQuirks,
)
from hybridgl.devices import CPU_BATCHES, Batches
from hybridgl.images import RgbImage
from hybridgl.methods.global_local import GlobalLocalClip
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.models import Models, transformer
from hybridgl.models.clip import ClipEncoder
from hybridgl.models.sam_encoder import encode
from hybridgl.models.sam_generator import MaskGenerator, point_grid
from hybridgl.program import keep_freed_memory
from hybridgl.weights.registry import weight_set
from refer.dataset import ImageErrors, ImageInfo, ReferSplit
from refer.image_errors import find_image_errors
from refer.phrasecut import load_phrasecut
from refer.refer import load_refer
from refer.segmentation import MaskRule, check_segmentation
from utils.runtime import cpu_name
from utils.tables import Table

__all__ = ["forget_peaks", "joules", "machine", "peaks", "table"]

NUM_SENTENCES = 7
"""Sentences of one image: 2.54 refs of 2.84 sentences in RefCOCO."""

NUM_FILES = 1_500
"""Image files that are looked at: as many as RefCOCO's val has."""

NUM_CHECKED = 150_000
"""Masks that are checked."""

QUIRKS = ReferenceQuirks()


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage does, ready to run.

    Attributes:
        handled: what one call handles.
        run: does it.
        once: whether it is called once only, because it takes long or leaves files in memory.
    """

    handled: str
    run: Callable[[], object]
    once: bool = False


Builder = Callable[[int, Path], Work]
"""Makes the work of a stage, for a number of masks, with an empty folder for files."""


def forget_peaks(device: torch.device) -> None:
    """Give back memory that is not in use, and measure peaks from here (on Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):  # not every Linux lets one forget
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> tuple[int, int | None]:
    """Return the most memory since then, in bytes: of the process, and of tensors on the GPU."""
    on_gpu = device.type == "cuda"
    return _status("VmHWM"), torch.cuda.max_memory_allocated(device) if on_gpu else None


def joules(device: torch.device) -> float | None:
    """Return the energy that a GPU has taken since its driver was loaded; None without NVML.

    NVML is a library of the driver, called directly: its Python package is not everywhere.
    """
    if device.type != "cuda":
        return None
    energy, handle = ctypes.c_ulonglong(), ctypes.c_void_p()
    with suppress(OSError, AttributeError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        calls = (
            nvml.nvmlInit_v2,
            partial(nvml.nvmlDeviceGetHandleByIndex_v2, device.index or 0, ctypes.byref(handle)),
            partial(nvml.nvmlDeviceGetTotalEnergyConsumption, handle, ctypes.byref(energy)),
        )
        if all(call() == 0 for call in calls):
            return energy.value / 1000
    return None


def machine(device: torch.device) -> dict[str, Any]:
    """Return when and where the measurements are made."""
    return {
        "date": str(date.today()),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def table(rows: Sequence[Mapping[str, Any]], text_columns: int = 1) -> str:
    """Return rows with the same keys as a Markdown table."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
        return "-" if value is None else str(value)

    cells = tuple(tuple(cell(value) for value in row.values()) for row in rows)
    return Table(tuple(rows[0]), cells, text_columns).markdown()


def _status(name: str) -> int:
    """Return a size of this process in bytes, by its name in Linux's /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def random_image() -> NDArray[np.uint8]:
    """Return a generated image, RGB, uint8, (H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, size=(*HW, 3), dtype=np.uint8)


def random_models(architecture: str = "ViT-B-16") -> Models:
    """Return a random CLIP of real size with the bundled SAM and parser."""
    models = Models(weight_set("tiny"), device=torch.device("cpu"))
    models.clip = ClipEncoder(random_clip_state(architecture), models.device)
    return models


def random_sam() -> Any:
    """Return a random SAM ViT-B."""
    sam = sam_model_registry["vit_b"]()
    sam.load_state_dict(random_sam_state("vit_b"))
    return sam.eval()


def sam_encoder(*_: object) -> Work:
    """Run SAM's image encoder."""
    sam, image_13RR = random_sam(), torch.zeros(1, 3, 1024, 1024)
    return Work("1 image", lambda: encode(sam.image_encoder, image_13RR))


def sam_generator(settings: str) -> Builder:
    """Run SAM's mask generator, with a threshold that half of the masks pass."""

    def work(*_: object) -> Work:
        sam, image_HW3 = random_sam(), random_image()
        predictor = SamPredictor(sam)
        predictor.set_image(image_HW3)
        points_P2 = predictor.transform.apply_coords(point_grid(8) * HW[::-1], HW)
        points_P12 = torch.as_tensor(points_P2)[:, None]
        _, iou_PM, _ = predictor.predict_torch(points_P12, torch.ones(points_P12.shape[:2]))
        config = replace(
            SAM_SETTINGS[settings],
            pred_iou_thresh=float(iou_PM.median().clamp(max=1)),
            stability_score_thresh=0.0,
        )
        generator = MaskGenerator(sam, config, torch.device("cpu"), Batches(CPU_BATCHES))
        return Work("1 image", lambda: generator.submit([image_HW3])[0](), once=True)

    return work


def features(mode: FusionMode, count: int | None = None) -> Builder:
    """Compute mask features in a fusion mode, from the image and its masks."""

    def work(num_masks: int, _: Path) -> Work:
        config = HybridGLConfig(fusion=FusionConfig(fusion_mode=mode))
        masks_NHW = drawn_masks(0, count or num_masks).masks_NHW
        run = partial(HybridGL(random_models(), config).compute_features, random_image(), masks_NHW)
        return Work(f"{len(masks_NHW)} masks", run)

    return work


def scores(count: int) -> Builder:
    """Score some sentences on one image of 8 masks."""

    def work(*_: object) -> Work:
        method, image = HybridGL(random_models(), HybridGLConfig()), RgbImage(random_image())
        sentences = [f"the red circle left of the {n}th disc" for n in range(count)]
        run = partial(method.score, image, sentences, drawn_masks(0, 8))
        return Work(f"{count} sentences", run)

    return work


def baseline(architecture: str) -> Builder:
    """Compute Global-Local CLIP's features of an image's masks."""

    def work(num_masks: int, _: Path) -> Work:
        config = GlobalLocalConfig(mixing_weight=0.95)
        method = GlobalLocalClip(random_models(architecture), config)
        image, proposals = RgbImage(random_image()), drawn_masks(0, num_masks)
        return Work(f"{num_masks} masks", lambda: method.features(image, proposals))

    return work


def gem_maps(*_: object) -> Work:
    """Compute GEM's cosines of an image's patches with its noun phrases."""
    method, image = HybridGL(random_models(), HybridGLConfig()), RgbImage(random_image())
    phrases = [f"thing {n}" for n in range(NUM_SENTENCES)]
    return Work(f"{NUM_SENTENCES} phrases", lambda: method.patch_similarity(image, phrases))


def read(dataset: str, split: str) -> Builder:
    """Read a split of the published size, its counts checked."""

    def work(_: int, folder: Path) -> Work:
        if dataset == "phrasecut":
            write_phrasecut(split, folder)
            return Work("1 split", lambda: load_phrasecut(folder, split), once=True)
        write_refcoco(folder)
        return Work("1 split", lambda: load_refer(folder, dataset, split), once=True)

    return work


def look_at_images(_: int, folder: Path) -> Work:
    """Look for errors of image files that have none."""
    for image_id in range(NUM_FILES):
        Image.fromarray(random_image()[:120, :160]).save(folder / f"{image_id}.jpg")
    infos = {i: ImageInfo(i, f"{i}.jpg", 120, 160) for i in range(NUM_FILES)}
    split = ReferSplit("files", "all", "-", (), infos, {}, (folder,), {})

    def run() -> None:
        assert find_image_errors(split) == ImageErrors()

    return Work(f"{NUM_FILES} files", run)


def check(form: str) -> Builder:
    """Check masks: COCO's polygons, PhraseCut's, or run lengths of the same outlines."""

    def work(*_: object) -> Work:
        points = list(outlines(np.random.default_rng(0), 10_000))
        flat = [one.ravel().tolist() for one in points]
        masks: list[Any] = {
            "COCO's polygons": lambda: flat,
            "PhraseCut's polygons": lambda: [one.tolist() for one in points],
            "run lengths": lambda: coco_mask.frPyObjects(flat, *HW),
        }[form]()
        rule = MaskRule.PHRASECUT if form.startswith("PhraseCut") else MaskRule.COCO

        def run() -> None:
            for place in range(NUM_CHECKED):
                check_segmentation([masks[place % len(masks)]], HW, rule=rule)

        return Work(f"{NUM_CHECKED} masks", run, once=True)

    return work


STAGES: dict[str, Builder] = {
    "SAM encoder": sam_encoder,
    "SAM generator": sam_generator("refcoco"),
    "SAM with PhraseCut's settings": sam_generator("phrasecut"),
    "GEM": gem_maps,
    **{f"features {mode.value}": features(mode) for mode in FusionMode},
    "features Global-Local (ViT-B/32)": baseline("ViT-B-32"),
    "features Global-Local (RN50)": baseline("RN50"),
    **{f"features of {n} masks": features(FusionMode.GLOBAL_TO_LOCAL, n) for n in (8, 32, 128)},
    **{f"scores of {n} sentences": scores(n) for n in (7, 28, 112)},
    **{f"read RefCOCO {split}": read("refcoco", split) for split in ("train", "val")},
    **{f"read PhraseCut {split}": read("phrasecut", split) for split in ("train", "test")},
    "look at images": look_at_images,
    **{
        f"check {form}": check(form)
        for form in ("COCO's polygons", "PhraseCut's polygons", "run lengths")
    },
}


@torch.inference_mode()
def measure(stage: str, num_masks: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Run a stage in this process, with memory kept as the programs keep it.

    Returns:
        Its row of the table: seconds are of one call, the best of the repetitions; operations are
        those of matrix products, convolutions and attention, a multiplication and an addition being
        two; "% of rate" is of those of a large matrix product in the same process.
    """
    keep_freed_memory()
    work = STAGES[stage](num_masks, folder)
    operations = None
    if not work.once:
        with FlopCounterMode(display=False) as counter:
            work.run()
        operations = counter.get_total_flops() or None
    forget_peaks(torch.device("cpu"))
    before = _status("VmRSS")
    seconds = _fastest(work.run, 1 if work.once else repeats)
    peak, _ = peaks(torch.device("cpu"))
    per_second = operations and operations / seconds
    return {
        "stage": stage,
        "per call": work.handled,
        "seconds": seconds,
        "GFLOP/s": per_second and per_second / 1e9,
        "% of rate": per_second and 100 * per_second / _rate(),
        "MB above what was there": (peak - before) / 1e6,
        "peak MB": peak / 1e6,
    }


def _rate() -> float:
    """Measure the operations a second of a large matrix product in float32."""
    rows, width = 4096, 1024
    x, weight, bias = torch.randn(rows, width), torch.randn(width, width), torch.zeros(width)
    return 2 * rows * width**2 / _fastest(lambda: transformer.linear(x, weight, bias), 4)


def _fastest(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure every stage, each in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", type=int, default=16, help="masks of the image (default: 16)")
    parser.add_argument("--repeats", type=int, default=2, help="the best counts (default: 2)")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--output", type=Path, metavar="FILE", help="measurements as JSON")
    parser.add_argument("--in_process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_process:
        with tempfile.TemporaryDirectory() as name:
            given = (arguments.stages[0], arguments.masks, arguments.repeats)
            print(json.dumps(measure(*given, Path(name))))
        return
    rows = []
    for stage in arguments.stages:
        sys.stderr.write(f"{stage} ...\n")
        command = [sys.executable, "-m", "benchmarks.stages", "--in_process", "--stages", stage]
        command += ["--masks", str(arguments.masks), "--repeats", str(arguments.repeats)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(result.stdout.splitlines()[-1]))
    header = {**machine(torch.device("cpu")), "image": f"{HW[1]} x {HW[0]}"}
    print(", ".join(f"{name} {value}" for name, value in header.items()), end="\n\n")
    print(table(rows, 2))
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": header, "stages": rows}, indent=2))


if __name__ == "__main__":
    main()
