"""Time and peak memory of reading annotation files of the published sizes, and of checking them.

The files are made from a seed in a temporary folder: as many refs, sentences, images and objects as
the published ones have, with outlines of the usual length. Each task runs in a process of its own,
so that its peak memory is its own.

Example:
    python -m benchmarks.loading --output loading.json
"""

from __future__ import annotations

import argparse
import json
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray
from PIL import Image

from refer.dataset import ImageErrors, ImageInfo, ReferSplit
from refer.image_errors import find_image_errors
from refer.phrasecut import load_phrasecut
from refer.refer import load_refer
from refer.segmentation import MaskRule, check_segmentation
from refer.splits import SPLITS
from utils.runtime import peak_memory_bytes
from utils.tables import Table

HW = (480, 640)
"""Size of the annotated images, in pixels: RefCOCO's usual one."""

NUM_ANNOTATIONS = 196_771
"""Of RefCOCO's instances.json."""

NUM_IMAGES = 1_500
"""Files that are looked at: as many as RefCOCO's val has."""

NUM_MASKS = 150_000
"""Masks that are checked."""

MEAN_POINTS = 24
"""Of an outline: instances.json gets about 100 MB by it, as the published one has."""

MEAN_INSTANCES = 1.6
"""Objects of a PhraseCut phrase."""

WORDS = ("the", "man", "on", "left", "in", "a", "red", "shirt", "holding", "an", "umbrella")


@dataclass(frozen=True, slots=True)
class Measurement:
    """One task's cost.

    Attributes:
        task: its name.
        handled: what it handles, with how many.
        seconds: of the one call.
        peak_bytes: largest resident size of the process after the call.
    """

    task: str
    handled: str
    seconds: float
    peak_bytes: int


def outlines(rng: np.random.Generator, count: int) -> Iterator[NDArray[np.float64]]:
    """Stars around random centres: (points, 2), x and y in pixels."""
    spread = rng.lognormal(np.log(MEAN_POINTS) - 0.7**2 / 2, 0.7, count)
    centres = rng.uniform(0.2, 0.8, (count, 2)) * HW[::-1]
    for num_points, centre in zip(np.clip(spread, 3, 400).astype(int), centres, strict=True):
        angles = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
        radii = rng.uniform(20, 90, (num_points, 1))
        yield (centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round(2)


def phrase(rng: np.random.Generator) -> str:
    """Two to eight words."""
    return " ".join(rng.choice(WORDS, rng.integers(2, 9)))


def write_list(path: Path, entries: Iterator[object], before: str = "", after: str = "") -> None:
    """A JSON list, entry by entry, between other text."""
    with path.open("w", encoding="utf-8") as file:
        file.write(f"{before}[")
        for place, entry in enumerate(entries):
            file.write(f"{', ' if place else ''}{json.dumps(entry)}")
        file.write(f"]{after}")


def write_refcoco(root: Path) -> None:
    """RefCOCO by unc: in every split the published numbers of refs, images and sentences."""
    rng = np.random.default_rng(0)
    counts = {split: count for split, count in SPLITS["refcoco"]["unc"].items() if count}
    num_images = sum(count.images for count in counts.values())
    refs: list[dict[str, object]] = []
    sentences = 0
    first_image = 0
    for split, count in counts.items():
        shares = np.diff(np.arange(count.refs + 1) * (count.sentences or 0) // count.refs)
        for place, share in enumerate(shares.tolist()):
            image_id = first_image + place % count.images
            raws = [phrase(rng) for _ in range(share)]
            ids = range(sentences, sentences + share)
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": image_id + place // count.images * num_images,
                    "image_id": image_id,
                    "category_id": 1,
                    "split": split,
                    "file_name": f"COCO_train2014_{image_id:012d}_{len(refs)}.jpg",
                    "sent_ids": list(ids),
                    "sentences": [
                        {"sent_id": sent_id, "raw": raw, "sent": raw, "tokens": raw.split()}
                        for sent_id, raw in zip(ids, raws, strict=True)
                    ],
                }
            )
            sentences += share
        first_image += count.images
    folder = root / "refcoco"
    folder.mkdir()
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    images = [
        {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "height": HW[0], "width": HW[1]}
        for i in range(num_images)
    ]
    annotations = (
        {
            "id": ann_id,
            "image_id": ann_id % num_images,
            "category_id": 1,
            "segmentation": [points.ravel().tolist()],
            "bbox": [*points.min(axis=0).tolist(), *np.ptp(points, axis=0).tolist()],
            "area": 1000.5,
            "iscrowd": 0,
        }
        for ann_id, points in enumerate(outlines(rng, NUM_ANNOTATIONS))
    )
    before = f'{{"images": {json.dumps(images)}, "categories": [], "annotations": '
    write_list(folder / "instances.json", annotations, before, "}")


def write_phrasecut(split: str, root: Path) -> None:
    """One split of PhraseCut, with the published numbers of phrases and images."""
    rng = np.random.default_rng(0)
    count = SPLITS["phrasecut"]["-"][split]
    assert count is not None
    shares = 1 + rng.poisson(MEAN_INSTANCES - 1, count.refs)
    points = outlines(rng, int(shares.sum()))

    def tasks() -> Iterator[object]:
        for place, share in enumerate(shares.tolist()):
            polygons = [[next(points).tolist()] for _ in range(share)]
            image_id = place % count.images
            yield {
                "task_id": f"{image_id}__{place}",
                "image_id": image_id,
                "ann_ids": list(range(share)),
                "instance_boxes": [[10.5, 20.5, 30.5, 40.5]] * share,
                "phrase": phrase(rng),
                "phrase_structure": {"name": "man", "attributes": ["red"], "type": "attribute"},
                "Polygons": polygons,
            }

    folder = root / "phrasecut"
    folder.mkdir(exist_ok=True)
    write_list(folder / f"refer_{split}.json", tasks())
    sizes = (
        {"image_id": i, "height": HW[0], "width": HW[1], "split": split}
        for i in range(count.images)
    )
    write_list(folder / "image_data_split.json", sizes)


def write_images(root: Path) -> None:
    """Small images, all alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    for image_id in range(NUM_IMAGES):
        Image.fromarray(pixels).save(root / f"{image_id}.jpg")


def load(dataset: str, split: str, root: Path) -> tuple[str, float]:
    """Read a split, its published counts checked."""
    start = time.perf_counter()
    if dataset == "phrasecut":
        found = load_phrasecut(root, split)
    else:
        found = load_refer(root, dataset, split)
    seconds = time.perf_counter() - start
    return (
        f"{len(found.refs)} refs, {found.num_sentences} sentences, {len(found.images)} images, "
        f"{len(found.annotations)} objects",
        seconds,
    )


def look_at_images(root: Path) -> tuple[str, float]:
    """Look for image_errors of image files that have none."""
    infos = {i: ImageInfo(i, f"{i}.jpg", 120, 160) for i in range(NUM_IMAGES)}
    split = ReferSplit("files", "all", "-", (), infos, {}, (root,), {})
    start = time.perf_counter()
    image_errors = find_image_errors(split)
    seconds = time.perf_counter() - start
    assert image_errors == ImageErrors()
    return f"{NUM_IMAGES} files", seconds


def check(segmentations: Sequence[object], rule: MaskRule) -> tuple[str, float]:
    """Check masks."""
    start = time.perf_counter()
    for place in range(NUM_MASKS):
        check_segmentation(segmentations[place % len(segmentations)], HW, rule=rule)
    return f"{NUM_MASKS} masks", time.perf_counter() - start


def check_polygons(_: Path) -> tuple[str, float]:
    """Check polygons in COCO's form."""
    points = outlines(np.random.default_rng(0), 10_000)
    return check([[one.ravel().tolist()] for one in points], MaskRule.COCO)


def check_points(_: Path) -> tuple[str, float]:
    """Check polygons in PhraseCut's form."""
    points = outlines(np.random.default_rng(0), 10_000)
    return check([[one.tolist()] for one in points], MaskRule.PHRASECUT)


def check_run_lengths(_: Path) -> tuple[str, float]:
    """Check compressed run lengths, of the same outlines."""
    flat = [one.ravel().tolist() for one in outlines(np.random.default_rng(0), 10_000)]
    return check([[rle] for rle in coco_mask.frPyObjects(flat, *HW)], MaskRule.COCO)


def nothing(_: Path) -> None:
    """No files to write."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured.

    Attributes:
        write: writes the files that it reads to a folder.
        run: says what it handled, and how many seconds that took.
    """

    write: Callable[[Path], None]
    run: Callable[[Path], tuple[str, float]]


TASKS: dict[str, Task] = {
    **{
        f"read RefCOCO {split}": Task(write_refcoco, partial(load, "refcoco", split))
        for split in ("train", "val")
    },
    **{
        f"read PhraseCut {split}": Task(
            partial(write_phrasecut, split), partial(load, "phrasecut", split)
        )
        for split in ("train", "test")
    },
    "look at images": Task(write_images, look_at_images),
    "check COCO's polygons": Task(nothing, check_polygons),
    "check PhraseCut's polygons": Task(nothing, check_points),
    "check run lengths": Task(nothing, check_run_lengths),
}


def measure(name: str, root: Path) -> Measurement:
    """Run a task in this process, on files that are there."""
    handled, seconds = TASKS[name].run(root)
    return Measurement(name, handled, seconds, peak_memory_bytes())


def table(measurements: Sequence[Measurement]) -> Table:
    """The measurements as text."""
    return Table(
        header=("task", "handled", "seconds", "peak MB"),
        rows=tuple(
            (m.task, m.handled, f"{m.seconds:.2f}", f"{m.peak_bytes / 1e6:.0f}")
            for m in measurements
        ),
    )


def main() -> None:
    """Measure every task, each in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--output", type=Path, metavar="FILE", help="measurements as JSON")
    parser.add_argument("--step", choices=["write", "run"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "write":
        TASKS[arguments.tasks[0]].write(arguments.folder)
        return
    if arguments.step == "run":
        print(json.dumps(asdict(measure(arguments.tasks[0], arguments.folder))))
        return
    measurements = []
    for name in arguments.tasks:
        sys.stderr.write(f"{name} ...\n")
        with tempfile.TemporaryDirectory() as folder:
            # Written by another process: one that is started counts its parent's memory as its own.
            for step in ("write", "run"):
                command = [sys.executable, "-m", "benchmarks.loading", "--tasks", name]
                command += ["--folder", folder, "--step", step]
                result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measurements.append(Measurement(**json.loads(result.stdout.splitlines()[-1])))
    print(f"{date.today()}, {platform.machine()}, Python {platform.python_version()}\n")
    print(table(measurements).markdown())
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(m) for m in measurements], indent=2))


if __name__ == "__main__":
    main()
