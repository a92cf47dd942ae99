"""Stage 2: pick a mask for every expression of a split, and report mIoU and oIoU.

Uses what the store holds (GEM maps of save_attn_gem.py, proposals, features) and makes what it
lacks; a killed run goes on where it stopped.

Example:
    python hybridgl_main.py --dataset shapes --split val --fusion_mode G2L
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from tqdm import tqdm

from hybridgl.arguments import add_model_arguments, fusion_mode, model_from_arguments
from hybridgl.config import FusionMode
from hybridgl.errors import UserError
from hybridgl.evaluation import candidate_caps, outcomes
from hybridgl.figures import draw_prediction
from hybridgl.images import RgbImage
from hybridgl.metrics import Overlap, iou, mean_iou, overall_iou, precision_at
from hybridgl.pipeline import HybridGL
from refer.arguments import add_split_arguments, split_from_arguments
from refer.errors import DataError
from refer.reader import ReferSplit
from third_party.published import published_scores
from utils.records import PICKS, Record, write_records, write_summary
from utils.runtime import (
    Stopwatch,
    add_store_arguments,
    output_folder,
    peak_memory_bytes,
    run_program,
    store_from_arguments,
)
from utils.tables import breakdown

_FIGURES_OF_EACH_SORT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_split_arguments(parser)
    add_model_arguments(parser)
    add_store_arguments(parser)
    parser.add_argument(
        "--fusion_mode",
        type=fusion_mode,
        default=FusionMode.GLOBAL_TO_LOCAL,
        metavar="{" + ",".join(mode.value for mode in FusionMode) + "}",
        help="how the two streams of a mask are combined (default: G2L)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where records, summary and figures go (default: runs/DATASET-SPLIT-MODE-PROFILE)",
    )
    arguments = parser.parse_args(argv)
    return run_program(lambda: run(arguments), expected=(UserError, DataError, OSError))


def run(arguments: argparse.Namespace) -> None:
    """Evaluate the split and leave records, summary and figures."""
    split = split_from_arguments(arguments)
    store = store_from_arguments(arguments)
    model = model_from_arguments(arguments, store)
    settings = {
        "dataset": split.dataset,
        "split": split.split,
        "split_by": split.split_by,
        "limit": arguments.limit,
        **model.describe(),
    }
    name = f"{split.dataset}-{split.split}-{arguments.fusion_mode.value}-{arguments.profile}"
    output = output_folder(
        arguments.output or Path("runs") / name, settings, overwrite=arguments.overwrite
    )
    watch = Stopwatch()
    with watch.measure("proposals"):
        counts = {
            image_id: len(model.propose(open_image(split, image_id)))
            for image_id in tqdm(split.images, desc="proposals", unit="image")
        }
    with watch.measure("features and guidance"):
        caps = caps_by_ref(model, split, counts)
        records = evaluate(model, split, counts, caps)
    write_records(output / "records.jsonl", records)
    with watch.measure("figures"):
        draw_samples(model, split, records, caps, output / "figures")
    write_summary(
        output / "summary.json",
        {
            "settings": settings,
            "samples": len(records),
            "samples_without_proposals": sum(r.num_proposals == 0 for r in records),
            "samples_truncated": sum(r.truncated for r in records),
            "problems": list(split.problems),
            "scores": score_by_pick(records),
            "store": {"hits": dict(store.hits), "misses": dict(store.misses)},
            "seconds": watch.seconds,
            "peak_memory_bytes": peak_memory_bytes(),
        },
    )
    report(split, records, output)


def open_image(split: ReferSplit, image_id: int) -> RgbImage:
    """A picture of the split, of the size that its annotations are in.

    Raises:
        DataError: it has another size.
    """
    image, info = (
        RgbImage(split.image_path(image_id), apply_orientation=False),
        split.images[image_id],
    )
    if image.hw != (info.height, info.width):
        raise DataError(
            f"Expected {info.width} x {info.height} pixels in {image.name}, as annotated, got "
            f"{image.hw[1]} x {image.hw[0]}. Fetch the file again."
        )
    return image


def caps_by_ref(model: HybridGL, split: ReferSplit, counts: dict[int, int]) -> dict[int, int]:
    """Cap on the candidate counts of every ref (quirk Q5), from every image's proposal count."""
    caps = candidate_caps(
        [counts[ref.image_id] for ref in split.refs],
        shrinks=model.config.quirks.top_k_shrinks_across_images,
    )
    return {ref.ref_id: cap for ref, cap in zip(split.refs, caps, strict=True)}


def evaluate(
    model: HybridGL, split: ReferSplit, counts: dict[int, int], caps: dict[int, int]
) -> list[Record]:
    """A record for every sentence, in dataset order.

    Args:
        model: the method.
        split: the data.
        counts: number of proposals of every image.
        caps: from ``caps_by_ref``.
    """
    drop_overlaps = model.config.quirks.overlapping_polygons_dropped
    records: dict[tuple[int, int], Record] = {}
    for image_id, refs in tqdm(split.refs_by_image().items(), desc="picks", unit="image"):
        image = open_image(split, image_id)
        samples = [(ref, sentence) for ref in refs for sentence in ref.sentences]
        predictions = model.predict(
            image,
            model.parse([sentence.raw for _, sentence in samples]),
            [caps[ref.ref_id] for ref, _ in samples],
        )
        truth_of = {ref.ref_id: split.truth(ref, drop_overlaps=drop_overlaps) for ref in refs}
        truths_SHW = np.stack([truth_of[ref.ref_id] for ref, _ in samples])
        results = outcomes(model.propose(image), predictions, truths_SHW)
        for (ref, sentence), prediction, outcome in zip(samples, predictions, results, strict=True):
            expression = prediction.expression
            records[ref.ref_id, sentence.sent_id] = Record(
                dataset=split.dataset,
                split=split.split,
                ref_id=ref.ref_id,
                sent_id=sentence.sent_id,
                image_id=image_id,
                sentence=sentence.raw,
                kind=sentence.kind,
                noun_phrase=expression.noun_phrase,
                num_other_nouns=len(expression.other_nouns),
                position=expression.position.value,
                relation=expression.relation.value,
                truncated=model.clip.is_truncated(expression.sentence),
                num_proposals=counts[image_id],
                **outcome.counts(),
            )
    return [records[ref.ref_id, sent.sent_id] for ref in split.refs for sent in ref.sentences]


def overlaps(records: Sequence[Record], pick: str) -> list[Overlap]:
    """Counts of one of the picks."""
    return [
        Overlap(getattr(r, f"intersection_{pick}"), getattr(r, f"union_{pick}")) for r in records
    ]


def draw_samples(
    model: HybridGL,
    split: ReferSplit,
    records: Sequence[Record],
    caps: dict[int, int],
    folder: Path,
) -> None:
    """Figures of the best, the worst and some random picks, by the IoU of the guided one."""
    folder.mkdir(exist_ok=True)
    order = sorted(records, key=lambda r: iou(overlaps([r], "guided")[0]))
    few = min(_FIGURES_OF_EACH_SORT, len(order))
    sorts = {"worst": order[:few], "best": order[-few:], "random": Random(0).sample(order, few)}
    refs = {ref.ref_id: ref for ref in split.refs}
    drop_overlaps = model.config.quirks.overlapping_polygons_dropped
    for sort, chosen in sorts.items():
        for rank, record in enumerate(chosen, start=1):
            image = open_image(split, record.image_id)
            expressions = model.parse([record.sentence])
            prediction = model.predict(image, expressions, [caps[record.ref_id]])[0]
            draw_prediction(
                folder / f"{sort}-{rank}.png",
                image.pixels_HW3,
                model.propose(image),
                prediction,
                model.heat_map(prediction, image.hw),
                title=f"{record.sentence!r} (ref {record.ref_id}, sentence {record.sent_id})",
                truth_HW=split.truth(refs[record.ref_id], drop_overlaps=drop_overlaps),
            )


def score_by_pick(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Precision, oIoU and mIoU of every pick, and mIoU of the yardsticks, in percent."""
    scores = {
        pick: {
            "oIoU": overall_iou(overlaps(records, pick)),
            "mIoU": mean_iou(overlaps(records, pick)),
            "P@0.5": precision_at(overlaps(records, pick), 0.5),
        }
        for pick in PICKS
    }
    for name in ("random", "best"):
        mean = sum(getattr(r, f"{name}_iou") for r in records) / len(records)
        scores[name] = {"mIoU": 100 * mean}
    return scores


def report(split: ReferSplit, records: Sequence[Record], output: Path) -> None:
    """Print scores by kind of expression, the totals, and what is published."""
    columns = {
        f"{score} {pick}": lambda rows, score=score, pick=pick: score_by_pick(rows)[pick][score]
        for score, picks in (("mIoU", (*PICKS, "random", "best")), ("P@0.5", PICKS))
        for pick in picks
    }
    print(f"\n{breakdown(records, lambda r: r.kind or 'all', columns, title='kind').markdown()}\n")
    scores = score_by_pick(records)
    for name, pick in (("pure features", "pure"), ("with guidance", "guided")):
        print(f"{name}: oIoU {scores[pick]['oIoU']:.2f}  mIoU {scores[pick]['mIoU']:.2f}")
    print(f"{len(records)} samples, {sum(not r.num_proposals for r in records)} without proposals")
    for problem in split.problems:
        print(f"note: {problem}")
    for published in published_scores(split.dataset, split.split_by, split.split):
        oiou = "-" if published.oiou is None else f"{published.oiou:.2f}"
        print(f"published, {published.what}: oIoU {oiou}  mIoU {published.miou:.2f}")
        print(f"    ({published.source})")
    print(f"records, summary and figures: {output}")


if __name__ == "__main__":
    sys.exit(main())
