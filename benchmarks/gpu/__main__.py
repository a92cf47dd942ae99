r"""One command that proves CUDA: every prediction as on a CPU, and what speed and memory it has.

Five parts, the most important first; each measurement is printed as soon as it is there, and the
JSON is written again after it, so that a run cut short is worth something. What fails is named, and
the next measurement is taken.

    exact    golden vectors within 1e-3; every prediction on shapes val as on the CPU; as counts,
             what TF32, a bfloat16 encoder and compiled encoders change; two runs, the same records
    run      both programs at real size (random weights; SAM ViT-H, CLIP ViT-B/16; 640 x 480 pixels;
             RefCOCO's proportions) beside the order of work of the released program
    stages   each against its floor, in every number format; forms of attention; batch sizes
    memory   the peak at RefCOCO's and PhraseCut's settings, and by the number of masks
    waiting  the share of time in which the device has nothing to do, and where the host waits

A CPU runs all five with the bundled models, small: that shows that the command works.

Nothing is fetched. SpaCy is not needed: what it would read stands in benchmarks/gpu/parses.json,
which `python -m benchmarks.gpu.parses` writes. Nor is an install: the packages needed are those of
PACKAGES below, and where a machine lacks some, usually the last six, they come as wheels for its
Python:

    pip download --no-deps -d wheels --only-binary :all: --python-version 3.12 \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
        open_clip_torch ftfy wcwidth segment-anything pycocotools msgspec
    pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=src:.:site python -m benchmarks.gpu

Example:
    python -m benchmarks.gpu
    python -m benchmarks.gpu --device cpu --minutes 2 --output measurements.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "timm": "timm",
    "regex": "regex",
    "huggingface_hub": "huggingface_hub",
    "open_clip": "open_clip_torch",
    "ftfy": "ftfy",
    "wcwidth": "wcwidth",
    "segment_anything": "segment-anything",
    "pycocotools": "pycocotools",
    "msgspec": "msgspec",
}
"""What is imported, and the package that brings it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        sizes: of the models: "real", or "tiny" for the bundled ones.
        sam_type: of the real SAM.
        scenes: of shapes val, at most 100.
        images: of the whole run, at most 60.
        reference_images: of the reference schedule.
        masks: of its images.
        batch_sizes: of masks, points (squares) and images, that are tried.
        sam_settings: of SAM, whose memory is measured.
        masks_in_memory: numbers of masks whose memory is measured.
        traced_images: of the run whose trace is taken.
        repeats: of what is timed; the median counts.
        compiles: whether compiled encoders are measured.
    """

    sizes: str
    sam_type: str
    scenes: int
    images: int
    reference_images: int
    masks: int
    batch_sizes: Mapping[str, Sequence[int]]
    sam_settings: Sequence[str]
    masks_in_memory: Sequence[int]
    traced_images: int
    repeats: int
    compiles: bool


ON_GPU = Plan(
    sizes="real",
    sam_type="vit_h",
    scenes=100,
    images=60,
    reference_images=3,
    masks=32,
    batch_sizes={
        "masks": (8, 16, 32, 64, 128),
        "points": (16, 64, 256, 1024),
        "images": (1, 2, 4, 8, 16),
    },
    sam_settings=("refcoco", "phrasecut"),
    masks_in_memory=(8, 32, 128, 256),
    traced_images=12,
    repeats=3,
    compiles=True,
)

ON_CPU = Plan(
    sizes="tiny",
    sam_type="tiny",
    scenes=10,
    images=3,
    reference_images=1,
    masks=8,
    batch_sizes={"masks": (8, 16, 32), "points": (16, 64), "images": (1, 2)},
    sam_settings=("refcoco", "phrasecut"),
    masks_in_memory=(8, 32),
    traced_images=1,
    repeats=1,
    compiles=False,
)


def missing_packages() -> list[str]:
    """Return the packages that are not installed."""
    return [package for name, package in PACKAGES.items() if find_spec(name) is None]


def measure(
    plan: Plan, *, device: str, golden: Path, output: Path, seconds: float
) -> dict[str, Any]:
    """Take all measurements.

    Args:
        plan: how much.
        device: "cpu", "cuda" or "cuda:i".
        golden: folder of golden vectors.
        output: gets the JSON.
        seconds: after which nothing more is begun.

    Returns:
        The JSON.
    """
    # Not before it is known that the packages are there.
    from unittest.mock import patch

    import torch

    from benchmarks.data import Workload
    from benchmarks.gpu.exact import measure_exact
    from benchmarks.gpu.measurements import Measurements
    from benchmarks.gpu.memory import measure_memory
    from benchmarks.gpu.parses import StoredParser
    from benchmarks.gpu.stages import Bench, measure_stages
    from benchmarks.gpu.waiting import measure_waiting
    from benchmarks.gpu.whole import measure_run
    from benchmarks.stages import machine
    from hybridgl.devices import select_device
    from hybridgl.models import LOADERS
    from refer.shapes.world import write_world

    header = {**machine(select_device(device)), "models": plan.sizes, "SAM": plan.sam_type}
    log = Measurements(output, seconds, header)
    with tempfile.TemporaryDirectory() as name, patch.dict(LOADERS, parser=StoredParser):
        folder = Path(name)
        write_world(folder / "world", sizes={"val": plan.scenes})
        later = measure_exact(
            log,
            data_root=folder / "world",
            folder=folder / "exact",
            golden_folder=golden,
            device=device,
        )
        workload = Workload(
            sizes=plan.sizes,
            sam_type=plan.sam_type,
            images=plan.images,
            masks=plan.masks,
            device=device,
            folder=folder / "workload",
        )
        workload.write()
        later += measure_run(log, workload, plan.reference_images)
        bench = Bench(workload)
        later += measure_stages(log, bench, plan.batch_sizes, plan.repeats)
        measure_memory(log, bench, plan.sam_settings, plan.masks_in_memory)
        measure_waiting(log, bench, plan.traced_images)
        for one in later:
            if plan.compiles:
                torch.compiler.reset()  # it keeps a few graphs of a function, of all before
                log.measure(one.part, one.name, one.measure, needs_seconds=one.needs_seconds)
            else:
                log.leave_out(one.part, one.name, "a CPU takes minutes to compile")
    return log.values


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, default=8, help="after which nothing more is begun (default: 8)"
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:i or cpu (default: cuda)")
    parser.add_argument(
        "--golden",
        type=Path,
        metavar="DIR",
        default=Path(__file__).parents[2] / "tests" / "golden",
        help="golden vectors (default: tests/golden)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        default=Path("gpu.json"),
        help="gets the measurements as JSON (default: gpu.json)",
    )
    arguments = parser.parse_args(argv)
    missing = missing_packages()
    if missing:
        sys.stderr.write(
            f"error: Expected the packages of this benchmark, got none of {' '.join(missing)}; "
            f"install them, or put their wheels on the path as --help says.\n"
        )
        return 2
    from hybridgl.program import run_program

    def body() -> bool:
        found = measure(
            ON_CPU if arguments.device == "cpu" else ON_GPU,
            device=arguments.device,
            golden=arguments.golden,
            output=arguments.output,
            seconds=60 * arguments.minutes,
        )
        print(
            f"{len(found['failed'])} measurements failed, {len(found['left_out'])} were left out; "
            f"all are in {arguments.output}."
        )
        return not found["failed"]

    return run_program(body)


if __name__ == "__main__":
    sys.exit(main())
