"""A whole run at RefCOCO's proportions, timed against the order and granularity of the release.

Generated images and random weights of real size (``benchmarks/generated_data.py``) go through
both programs as a user runs them, and through ``benchmarks/reference_schedule.py``, in one process.
SAM's generator runs with its thresholds off, so that all its masks are drawn, compared and cleaned;
as random weights propose nothing useful, the ellipses of the image then take their place, on both
sides.

Seconds run from models loaded to records written. Left out on both sides: reading and hashing model
files, reading annotations, figures, and the intervals of the scores.

Example:
    python benchmarks/run.py --images 3 --masks 32 --output run.json
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL.ImageFile import ImageFile
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT

import hybridgl_main
import save_attn_gem
from benchmarks.floors import (
    DECODE,
    DECODER,
    ENCODER,
    FEATURES,
    GEM,
    GUIDANCE,
    PARSE,
    SCORING,
    STAGES,
    STORE,
    TEXTS,
    VIEWS,
    WHOLE,
    Cost,
    machine_rates,
    now,
    stage_costs,
)
from benchmarks.generated_data import Setting, write_files
from benchmarks.memory import forget_peaks, megabytes, peaks
from benchmarks.reference_schedule import ReferenceSchedule
from evaluation import run as runs
from evaluation.counts import ImageEvaluation
from evaluation.proposals import ProposalSource, SamSource
from evaluation.records import read_records
from hybridgl import gem, guidance, models, views
from hybridgl.config import (
    PROPOSALS_SHAPES,
    MethodConfig,
)
from hybridgl.images import RgbImage
from hybridgl.methods import hybridgl as pipeline
from hybridgl.models import sam as sam_proposals
from hybridgl.models import sam_generator as mask_generator
from hybridgl.models import select_device
from hybridgl.models.clip import ClipEncoder
from hybridgl.models.parser import SpacyParser
from hybridgl.models.sam import Sam
from hybridgl.masks import Proposals
from hybridgl.store import Store
from hybridgl.weights.registry import WeightSet, weight_set
from refer.dataset import ReferSplit
from refer.shapes.world import training_scene
from hybridgl.program import keep_freed_memory
from utils.tables import Table

IMAGES_OF_VAL = 1_500
"""Of RefCOCO's val."""

NUM_SCENES = 10
"""Of the shapes world, on which SAM's masks in two number formats are compared."""

MATCHING_IOU = 0.9

REFERENCE = "reference schedule"
OURS = "ours, cold store"
OURS_BFLOAT16 = "ours, cold store, bfloat16"
OURS_TOKENS = "ours, cold store, tokens kept"


@dataclass(frozen=True, slots=True)
class Variant:
    """How our programs are run.

    Attributes:
        flags: besides those that name data and models.
        store: name of its folder; what other variants have left there is used.
        writes_maps: whether the program that writes GEM maps runs too.
        keeps_tokens: whether the other one stores what enters CLIP's masked blocks.
    """

    flags: tuple[str, ...]
    store: str
    writes_maps: bool
    keeps_tokens: bool = False


VARIANTS = {
    OURS: Variant((), "float32", writes_maps=True),
    OURS_BFLOAT16: Variant(("--dtype", "bfloat16"), "bfloat16", writes_maps=True),
    OURS_TOKENS: Variant((), "tokens", writes_maps=True, keeps_tokens=True),
    "ours, warm store, mode L2G, tokens kept": Variant(
        ("--fusion_mode", "L2G"), "tokens", writes_maps=False, keeps_tokens=True
    ),
    "ours, warm store, mode L2G": Variant(("--fusion_mode", "L2G"), "float32", writes_maps=False),
    "ours, warm store, mode token_masking": Variant(
        ("--fusion_mode", "token_masking"), "float32", writes_maps=False
    ),
    "ours, warm store, other alpha": Variant(("--alpha", "0.5"), "float32", writes_maps=False),
    "ours, warm store, other num_candidates": Variant(
        ("--num_candidates", "5"), "float32", writes_maps=False
    ),
}
"""In the order in which they run: a warm store is what the first has left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run.

    Attributes:
        run: its name.
        seconds: from models loaded to records written.
        maps_seconds: of these, those of the program that writes GEM maps.
        left_out: seconds that are not counted, by what took them.
        peak_bytes: largest resident size of the process after the run, models included.
        device_peak_bytes: most memory that tensors took on the GPU; None without one.
        picks: "ref sentence" -> the proposals of the pure and of the guided pick.
        stages: seconds of every stage, all images together; empty for other runs. Where
            threads work at once, they add up to more than the whole.
        stored_bytes: of the store; 0 where stages were not measured.
        costs: of a run by stage; of the reference schedule only.
    """

    run: str
    seconds: float
    maps_seconds: float
    left_out: dict[str, float]
    peak_bytes: int
    device_peak_bytes: int | None
    picks: dict[str, list[int | None]]
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    stored_bytes: float = 0.0
    costs: dict[str, Cost] = dataclasses.field(default_factory=dict)


Call = tuple[str, Any, str]
"""Stage, owner of a function, name of the function."""

COMMON_CALLS: tuple[Call, ...] = (
    (DECODE, ImageFile, "load"),
    (PARSE, SpacyParser, "parse"),
    (SCORING, ReferSplit, "truth"),
)

OUR_CALLS: tuple[Call, ...] = (
    *COMMON_CALLS,
    (ENCODER, sam_proposals, "encode"),
    (DECODER, Sam, "submit"),
    (DECODER, mask_generator, "without_small_regions"),
    *(
        (VIEWS, views, name)
        for name in ("blur_background", "local_views", "global_views", "patch_coverage")
    ),
    (FEATURES, pipeline, "stream_tokens"),
    (FEATURES, pipeline, "fuse"),
    *((GEM, gem, n) for n in ("gem_input", "patch_features", "patch_similarity", "attention_map")),
    (TEXTS, ClipEncoder, "encode_texts"),
    *(
        (GUIDANCE, guidance, name)
        for name in ("similarity_scores", "weighted_attention", "coherence_scores", "choose")
    ),
    (SCORING, ImageEvaluation, "__init__"),
    (SCORING, ImageEvaluation, "outcome"),
    (STORE, Store, "save"),
    (STORE, Store, "load"),
)

REFERENCE_CALLS: tuple[Call, ...] = (
    *COMMON_CALLS,
    (ENCODER, ImageEncoderViT, "forward"),
    (DECODER, SamAutomaticMaskGenerator, "generate"),
    (VIEWS, ReferenceSchedule, "views"),
    (FEATURES, ReferenceSchedule, "mask_features"),
    (GEM, ReferenceSchedule, "gem_map"),
    (TEXTS, ReferenceSchedule, "encode_text"),
    (GUIDANCE, ReferenceSchedule, "choose"),
    (SCORING, ReferenceSchedule, "evaluate"),
    (STORE, ReferenceSchedule, "write_map"),
    (STORE, ReferenceSchedule, "read_map"),
)

LEFT_OUT: tuple[Call, ...] = (
    ("load models", models, "load"),
    ("hash model files", WeightSet, "sha256"),
    ("read annotations", save_attn_gem, "split_from_arguments"),
    ("intervals", runs, "intervals_by_pick"),
)


class Clock:
    """Seconds in functions, without those of the functions among them that these call.

    Attributes:
        seconds: by stage; of all threads together.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._on_gpu = device.type == "cuda"
        self._lock = threading.Lock()
        self._inner = threading.local()

    @contextmanager
    def watching(self, calls: Iterable[Call]) -> Iterator[None]:
        """Measure every call of some functions, wherever it comes from."""
        with ExitStack() as patches:
            for stage, owner, name in calls:
                timed = self._timed(stage, getattr(owner, name))
                patches.enter_context(patch.object(owner, name, timed))
            yield

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(self._inner, "seconds", 0.0)
            self._inner.seconds = 0.0
            start = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = self._now() - start
                with self._lock:
                    own = elapsed - self._inner.seconds
                    self.seconds[stage] = self.seconds.get(stage, 0.0) + own
                self._inner.seconds = outer + elapsed

        return timed

    def _now(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


class DrawnSource(ProposalSource):
    """Masks that take the place of SAM's, which are made all the same.

    Args:
        sam: the real source.
        drawn: masks by image.
    """

    def __init__(self, sam: ProposalSource, drawn: Mapping[int, Proposals]) -> None:
        self.name, self.models, self.warnings = "drawn ellipses", sam.models, sam.warnings
        self._sam, self._drawn = sam, drawn

    def count(self, image_id: int) -> int:
        """Number of an image's masks."""
        self._sam.count(image_id)
        return len(self._drawn[image_id])

    def counts(self, image_ids: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Every image's id and the number of its masks."""
        for image_id, _ in self._sam.counts(image_ids):
            yield image_id, len(self._drawn[image_id])

    def propose(self, image_id: int, image: RgbImage) -> Proposals:
        """An image's masks."""
        self._sam.propose(image_id, image)
        return self._drawn[image_id]

    def describe(self) -> dict[str, Any]:
        """Settings of SAM, and the number of masks that replace its own."""
        return {**self._sam.describe(), "drawn": len(next(iter(self._drawn.values())))}


def run_reference(setting: Setting) -> Measurement:
    """The reference schedule on all images, with its stages."""
    device, split = setting.torch_device, setting.split()
    drawn = setting.drawn(split)
    start = time.perf_counter()
    schedule = ReferenceSchedule(setting.weights, MethodConfig(proposals=setting.proposals), device)
    left_out = {"load models": time.perf_counter() - start}
    with tempfile.TemporaryDirectory(dir=setting.folder) as name:
        folder, clock = Path(name), Clock(device)
        forget_peaks(device)
        with clock.watching(REFERENCE_CALLS):
            start = now(device)
            schedule.save_maps(split, folder)
            middle = now(device)
            picks = schedule.pick(split, drawn, folder)
            end = now(device)
    peak, device_peak = peaks(device)
    return Measurement(
        run=REFERENCE,
        seconds=end - start,
        maps_seconds=middle - start,
        left_out=left_out,
        peak_bytes=peak,
        device_peak_bytes=device_peak,
        picks={f"{r} {s}": [pick.pure, pick.guided] for (r, s), pick in picks.items()},
        stages={**clock.seconds, WHOLE: end - start},
        costs=stage_costs(setting, schedule, split),
    )


def run_ours(name: str, setting: Setting) -> Measurement:
    """A variant of our programs on all images; with a cold store, a second time for its stages."""
    variant, device = VARIANTS[name], setting.torch_device
    output = setting.folder / "outputs" / str(list(VARIANTS).index(name))
    clock = Clock(device)
    forget_peaks(device)
    with clock.watching(LEFT_OUT):
        store = setting.folder / "stores" / variant.store
        seconds, maps_seconds = _run_programs(setting, variant, store, output, clock)
    peak, device_peak = peaks(device)
    picks = {
        f"{record.ref_id} {record.sent_id}": [
            record.picks[pick].index for pick in ("pure", "guided")
        ]
        for record in read_records(output / "records.jsonl")
    }
    measured = Measurement(
        run=name,
        seconds=seconds,
        maps_seconds=maps_seconds,
        left_out=clock.seconds,
        peak_bytes=peak,
        device_peak_bytes=device_peak,
        picks=picks,
    )
    if name not in (OURS, OURS_BFLOAT16):
        return measured
    # Stages overlap, and on a GPU each is awaited to be timed: not in the run that counts.
    stages, left_out = Clock(device), Clock(device)
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        places = (Path(folder) / "store", Path(folder) / "output")
        with left_out.watching(LEFT_OUT), stages.watching(OUR_CALLS):
            whole, _ = _run_programs(setting, variant, *places, left_out)
        sizes = [path.stat().st_size for path in places[0].rglob("*") if path.is_file()]
    return replace(
        measured, stages={**stages.seconds, WHOLE: whole}, stored_bytes=float(sum(sizes))
    )


def _run_programs(
    setting: Setting, variant: Variant, store: Path, output: Path, left_out: Clock
) -> tuple[float, float]:
    """Seconds of the programs, and of the one that writes maps alone."""
    files, device = setting.weights, setting.torch_device
    arguments = ["--dataset", "refcoco", "--split_by", "unc", "--split", "val"]
    arguments += ["--refer_data_root", str(setting.folder / "data"), "--device", setting.device]
    arguments += ["--weights", "paper", "--clip_weights", str(files.clip_weights)]
    arguments += ["--sam_type", files.sam_type, "--sam_checkpoint", str(files.sam_checkpoint)]
    arguments += ["--spacy_model", files.spacy_model, "--store", str(store), *variant.flags]
    maps_seconds = 0.0
    with redirect_stdout(io.StringIO()), patch.object(runs, "draw_samples", lambda *_: None):
        if variant.writes_maps:
            start = now(device) - left_out.total
            if save_attn_gem.main(arguments):
                raise RuntimeError("save_attn_gem.py failed; its message is above.")
            maps_seconds = now(device) - left_out.total - start
        arguments += ["--keep_tokens"] * variant.keeps_tokens
        run = _prepared([*arguments, "--output", str(output)], setting)
        start = now(device) - left_out.total
        hybridgl_main.execute(run)
        return maps_seconds + now(device) - left_out.total - start, maps_seconds


def _prepared(arguments: Sequence[str], setting: Setting) -> runs.Run:
    """The run of some arguments, with drawn masks in the place of SAM's."""
    run = runs.prepare(hybridgl_main.build_parser().parse_args(arguments))
    sam = SamSource(run.method.models, setting.proposals, run.store, run.split)
    source = DrawnSource(sam, setting.drawn(run.split))
    return replace(run, source=source, settings={**run.settings, "proposals": source.describe()})


def sam_in_bfloat16(setting: Setting) -> dict[str, float]:
    """How many of the bundled SAM's masks come out in bfloat16 as well, on the shapes world."""
    files, device = weight_set("tiny"), setting.torch_device
    exact, rounded = (
        Sam.from_checkpoint(files.sam_checkpoint, files.sam_type, device, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    best: list[float] = []
    count = 0
    for index in range(NUM_SCENES):
        image_HW3 = training_scene(0, index).image_HW3
        wanted_NP, found_NP = (
            torch.from_numpy(sam.propose(image_HW3, PROPOSALS_SHAPES).masks_NHW).flatten(1).float()
            for sam in (exact, rounded)
        )
        shared = wanted_NP @ found_NP.T
        union = wanted_NP.sum(1, keepdim=True) + found_NP.sum(1) - shared
        best += (shared / union).amax(dim=1).tolist() if len(found_NP) else [0.0] * len(wanted_NP)
        count += len(found_NP)
    matched = sum(iou >= MATCHING_IOU for iou in best)
    return {
        "scenes": NUM_SCENES,
        "float32 masks": len(best),
        "bfloat16 masks": count,
        "recall": matched / len(best),
        "mean IoU": sum(best) / len(best),
    }


def equal_picks(first: Measurement, second: Measurement) -> tuple[float, float]:
    """Share of sentences, in percent, with equal pure and with equal guided picks."""
    pairs = [(first.picks[sentence], second.picks[sentence]) for sentence in second.picks]
    shares = [100 * float(np.mean([a[way] == b[way] for a, b in pairs])) for way in (0, 1)]
    return shares[0], shares[1]


def compared(measured: Mapping[str, Measurement], images: int) -> list[dict[str, Any]]:
    """The runs as JSON values, each held against what it can be held against."""
    reference, ours = measured[REFERENCE], measured[OURS]
    against = {OURS: reference, OURS_BFLOAT16: ours, OURS_TOKENS: ours}
    rows = []
    for name, one in measured.items():
        # With maps in the store, the reference schedule would not make them again either.
        warm = name in VARIANTS and not VARIANTS[name].writes_maps
        plain = reference.seconds - reference.maps_seconds * warm
        row = {
            "run": name,
            "seconds": one.seconds,
            "images_per_second": images / one.seconds,
            "sentences_per_second": len(one.picks) / one.seconds,
            "times_faster": plain / one.seconds,
            "compared_with": against[name].run if name in against else None,
            "equal_pure_percent": None,
            "equal_guided_percent": None,
            "peak_bytes": one.peak_bytes,
            "device_peak_bytes": one.device_peak_bytes,
            "left_out_seconds": one.left_out,
        }
        if name in against:
            equal = equal_picks(against[name], one)
            row["equal_pure_percent"], row["equal_guided_percent"] = equal
        rows.append(row)
    return rows


def compared_stages(
    measured: Mapping[str, Measurement], rates: Mapping[str, float], images: int
) -> list[dict[str, Any]]:
    """Stages as JSON values: seconds per image on both sides, and the floor of ours."""
    reference = measured[REFERENCE]
    rows = []
    for stage in (*STAGES, WHOLE):
        row: dict[str, Any] = {
            "stage": stage,
            "reference_seconds": reference.stages[stage] / images,
        }
        for name, dtype in ((OURS, "float32"), (OURS_BFLOAT16, "bfloat16")):
            ours = measured[name]
            seconds, cost = ours.stages[stage], reference.costs.get(stage)
            if stage == STORE:
                cost = Cost(0, moved_bytes=ours.stored_bytes)
            floor = cost.seconds(rates, dtype) if cost else None
            row[dtype] = {
                "seconds": seconds / images,
                "times_faster": reference.stages[stage] / seconds,
                "floor_seconds": floor / images if floor is not None else None,
                "share_of_floor": floor / seconds if floor is not None else None,
            }
        rows.append(row)
    return rows


def runs_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """The runs as text."""
    return Table(
        header=(
            "run",
            "picks as",
            "seconds",
            "left out s",
            "images/s",
            "sentences/s",
            "times faster",
            "equal picks, pure %",
            "guided %",
            "peak MB",
            "GPU MB",
        ),
        rows=tuple(
            (
                row["run"],
                row["compared_with"] or "-",
                f"{row['seconds']:.2f}",
                f"{sum(row['left_out_seconds'].values()):.2f}",
                f"{row['images_per_second']:.3f}",
                f"{row['sentences_per_second']:.2f}",
                f"{row['times_faster']:.2f}",
                _number(row["equal_pure_percent"], "{:.1f}"),
                _number(row["equal_guided_percent"], "{:.1f}"),
                f"{row['peak_bytes'] / 1e6:.0f}",
                megabytes(row["device_peak_bytes"]),
            )
            for row in rows
        ),
        text_columns=2,
    )


def stages_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """The stages as text."""
    header = ["stage, per image", "reference s"]
    for dtype in ("float32", "bfloat16"):
        header += [f"{dtype} s", "times faster", "floor s", "% of floor reached"]
    cells = []
    for row in rows:
        line = [row["stage"], f"{row['reference_seconds']:.4f}"]
        for dtype in ("float32", "bfloat16"):
            ours = row[dtype]
            share = ours["share_of_floor"]
            line += [f"{ours['seconds']:.4f}", f"{ours['times_faster']:.2f}"]
            line += [_number(ours["floor_seconds"], "{:.5f}")]
            line += [_number(None if share is None else 100 * share, "{:.0f}")]
        cells.append(tuple(line))
    return Table(tuple(header), tuple(cells))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def machine(setting: Setting) -> dict[str, Any]:
    """When and where the measurements were made."""
    device, names = setting.torch_device, []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    on_gpu = device.type == "cuda"
    return {
        "date": str(date.today()),
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "sizes": setting.sizes,
        "SAM": setting.weights.sam_type,
        "images": setting.images,
        "masks": setting.masks,
    }


def report(setting: Setting) -> dict[str, Any]:
    """Do all runs, print their tables, and return them as JSON values."""
    measured: dict[str, Measurement] = {}
    for name in (REFERENCE, *VARIANTS):
        sys.stderr.write(f"{name} ...\n")
        measured[name] = run_reference(setting) if name == REFERENCE else run_ours(name, setting)
    rates = machine_rates(setting.torch_device, ("float32", "bfloat16"))
    rows = compared(measured, setting.images)
    stages = compared_stages(measured, rates, setting.images)
    sam = sam_in_bfloat16(setting)
    hours = {
        name: IMAGES_OF_VAL / row["images_per_second"] / 3600
        for name, row in zip(measured, rows, strict=True)
    }
    print(runs_table(rows).markdown(), end="\n\n")
    print(
        "Seconds from models loaded to records written; without reading and hashing model files, "
        "annotations, figures and intervals. A warm store holds maps and proposals, and is held "
        "against the reference schedule with its maps there.\n"
    )
    print(stages_table(stages).markdown(), end="\n\n")
    print(
        f"Floor: operations at {rates['float32'] / 1e9:.0f} (float32) and "
        f"{rates['bfloat16'] / 1e9:.0f} (bfloat16) GFLOP/s, or bytes at "
        f"{rates['bytes'] / 1e9:.1f} GB/s, measured here.\n"
    )
    print(
        f"SAM in bfloat16, bundled weights, {sam['scenes']} scenes: {100 * sam['recall']:.1f} % of "
        f"{sam['float32 masks']} masks have one of IoU {MATCHING_IOU} or more, mean IoU "
        f"{sam['mean IoU']:.3f}; {sam['bfloat16 masks']} masks.\n"
    )
    print(
        f"Extrapolated, not measured: RefCOCO val's {IMAGES_OF_VAL:,} images would take "
        f"{hours[OURS]:.1f} hours, in bfloat16 {hours[OURS_BFLOAT16]:.1f}, the reference schedule "
        f"{hours[REFERENCE]:.1f}."
    )
    return {
        "runs": rows,
        "stages": stages,
        "rates": rates,
        "sam_bfloat16": sam,
        "extrapolated_hours": hours,
    }


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes",
        choices=["real", "tiny"],
        default="real",
        help="of the models; tiny: the bundled ones (default: %(default)s)",
    )
    parser.add_argument(
        "--sam_type", choices=["vit_b", "vit_l", "vit_h"], default="vit_b", help="(default: vit_b)"
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="of the dataset (default: 3; on a GPU 100)"
    )
    parser.add_argument("--masks", type=int, default=32, help="of every image (default: 32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--output", type=Path, metavar="FILE", help="measurements as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    arguments = build_parser().parse_args(argv)
    on_gpu = select_device(arguments.device).type == "cuda"
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            sizes=arguments.sizes,
            sam_type=arguments.sam_type,
            images=arguments.images or (100 if on_gpu else 3),
            masks=arguments.masks,
            device=arguments.device,
            folder=Path(folder),
        )
        write_files(setting)
        header = machine(setting)
        print(", ".join(f"{name} {value}" for name, value in header.items()), end="\n\n")
        found = report(setting)
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": header, **found}, indent=2))


if __name__ == "__main__":
    main()
