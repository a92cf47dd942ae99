"""Reader of PhraseCut: phrases for any number of objects of Visual Genome's images.

A task of the files is a ref with one sentence, its phrase; its objects are annotations, and its
ground truth is their union.  README.md of this folder shows the expected files.

Source: the files that PhraseCut's authors publish (``refer_<split>.json``,
``image_data_split.json``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hybridgl.errors import DataError
from hybridgl.files import file_sha256
from refer import splits
from refer.dataset import Annotation, ImageInfo, Ref, ReferSplit, Sentence
from refer.entries import (
    FIX,
    Entry,
    EntryReader,
    first_few,
    read_json,
    require_unique,
    required,
    unexpected,
)
from refer.image_files import with_file_sizes
from refer.refer import image_size
from refer.segmentation import MIN_DRAWN_POINTS, MaskRule

__all__ = ["COCO_CATEGORIES", "load_phrasecut"]

SIZES_FILE = "image_data_split.json"

_NO_POLYGONS = "objects without a list of polygons count as without a mask in"

# fmt: off
COCO_CATEGORIES = frozenset((
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
))
# fmt: on
"""COCO's 80 categories of objects: phrases of these are "seen", all others "unseen"."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One phrase; ``num_too_short`` polygons of it have too few points to be drawn."""

    ref: Ref
    annotations: list[Annotation]
    num_too_short: int


def load_phrasecut(
    root: Path, split: str, *, check_counts: bool = True, strict: bool = False
) -> ReferSplit:
    """Load one split of PhraseCut.

    Polygons of fewer than two points, of which nothing can be drawn, are left out and counted among
    the warnings.

    Args:
        root: the data root; phrasecut/, phrasecut/VGPhraseCut_v0/, VGPhraseCut_v0/ in it or the
            root itself holds the files: the first that does.
        split: train, val, test or miniv.
        check_counts: refuse a split whose phrases or images differ in number from the published
            ones; False reads it all the same, and names it among the warnings.
        strict: refuse broken entries, which are otherwise left out and named among the warnings.

    Raises:
        FileNotFoundError: a file is missing; the message shows the expected ones.
        DataError: the split does not exist or is empty; a file is damaged; the counts are off; or
            an entry is broken, and ``strict``.
    """
    split_by = splits.validate("phrasecut", split)
    tasks_path = _find_tasks(root, split)
    folder = tasks_path.parent
    sizes_path = folder / SIZES_FILE
    if not sizes_path.is_file():
        raise FileNotFoundError(
            f"Expected {sizes_path} beside {tasks_path.name}, got none; "
            "see refer/README.md for the expected tree and where the data comes from."
        )
    readers = [EntryReader(path, strict=strict) for path in (tasks_path, sizes_path)]
    tasks, images = _read(*readers)
    folders = [folder / "images", folder, root / "images"]
    genome = [place / name for place in folders[1:] for name in ("VG_100K", "VG_100K_2")]
    loaded = ReferSplit(
        dataset="phrasecut",
        split=split,
        split_by=split_by,
        refs=tuple(task.ref for task in tasks),
        images=images,
        annotations={ann.ann_id: ann for task in tasks for ann in task.annotations},
        image_roots=(folders[0], *genome),
        sha256_by_file={path.name: file_sha256(path) for path in (tasks_path, sizes_path)},
        mask_rule=MaskRule.PHRASECUT,
        lenient=any(reader.lenient for reader in readers),
        warnings=(
            *(line for reader in readers for line in reader.warnings()),
            *_left_out(tasks, tasks_path),
        ),
    )
    return splits.checked(with_file_sizes(loaded), tasks_path, check_counts=check_counts)


def _find_tasks(root: Path, split: str) -> Path:
    places = [
        root / "phrasecut",
        root / "phrasecut" / "VGPhraseCut_v0",
        root / "VGPhraseCut_v0",
        root,
    ]
    paths = [place / f"refer_{split}.json" for place in places]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"Expected {paths[0].name} and {SIZES_FILE} in one of "
            f"{', '.join(map(str, places))}, and images in images/ beside them, got none; "
            "see refer/README.md for the expected tree and where the data comes from."
        )
    return found


def _read(
    tasks_reader: EntryReader, sizes_reader: EntryReader
) -> tuple[list[_Task], dict[int, ImageInfo]]:
    """Read the tasks of a split and their images, both in the order of image ids.

    The released program goes through images in that order, which decides quirk Q5; the tasks of an
    image stay in the order of the file.
    """
    content = read_json(tasks_reader.path)
    tasks = tasks_reader.each(
        content, lambda entry, index: _parse_task(entry, index, tasks_reader), "tasks"
    )
    if not tasks:
        raise DataError(
            f"Expected tasks in {tasks_reader.path}, got {tasks_reader.none_of('tasks')}; {FIX}."
        )
    require_unique((task.ref.ref_id for task in tasks), f"task_id in {tasks_reader.path}")
    image_ids = {task.ref.image_id for task in tasks}

    def parse_image(entry: Entry, index: int) -> ImageInfo | None:
        image_id = sizes_reader.whole(entry, "image_id")
        if image_id not in image_ids:
            return None
        hw = image_size(entry, f"entry {index} of the images", sizes_reader)
        return ImageInfo(image_id, f"{image_id}.jpg", *hw)

    sizes = sizes_reader.each(read_json(sizes_reader.path), parse_image, "images")
    require_unique((image.image_id for image in sizes), f"image_id in {sizes_reader.path}")
    images = {image.image_id: image for image in sizes}
    for task in tasks:
        if task.ref.image_id not in images:
            raise DataError(
                f"Expected the size of image {task.ref.image_id}, of task {task.ref.ref_id}, in "
                f"{sizes_reader.path}, got {sizes_reader.none_of('images')}; {FIX}."
            )
    tasks.sort(key=lambda task: task.ref.image_id)
    return tasks, {image_id: images[image_id] for image_id in sorted(image_ids)}


def _parse_task(entry: Entry, index: int, reader: EntryReader) -> _Task:
    task_id, image_id = required(entry, "task_id", str), reader.whole(entry, "image_id")
    place = f"entry {index} of the tasks"
    num_too_short = 0
    annotations: list[Annotation] = []
    for number, instance in enumerate(_objects(entry, place, reader)):
        polygons: list[object] = []
        try:
            polygons, num_left_out = _drawable(instance)
            num_too_short += num_left_out
        except DataError as error:
            reader.report(_NO_POLYGONS, f"object {number} of {place}", error)
        # Ids of our own: tasks repeat objects, each time with polygons that may differ.
        annotations.append(Annotation(f"{task_id}.{number}", image_id, polygons))
    ref = Ref(
        ref_id=task_id,
        ann_ids=tuple(ann.ann_id for ann in annotations),
        image_id=image_id,
        sentences=_sentences(entry, place, reader),
    )
    return _Task(ref, annotations, num_too_short)


def _sentences(entry: Entry, place: str, reader: EntryReader) -> tuple[Sentence, ...]:
    """Return the phrase of a task; none where it has no words."""
    try:
        phrase = required(entry, "phrase", str)
        if not phrase.strip():
            raise unexpected("a phrase in words", phrase)
    except DataError as error:
        reader.report("broken phrases are left out of", place, error)
        return ()
    kind = None
    try:
        name = required(required(entry, "phrase_structure", dict), "name", str)
        kind = "seen" if name in COCO_CATEGORIES else "unseen"
    except DataError as error:
        reader.report("phrases are neither seen nor unseen in", place, error)
    return (Sentence(sent_id=0, raw=phrase, kind=kind),)


def _objects(entry: Entry, place: str, reader: EntryReader) -> list[object]:
    """Return the objects of a task; none where they are no list."""
    try:
        return required(entry, "Polygons", list)
    except DataError as error:
        reader.report(_NO_POLYGONS, place, error)
        return []


def _drawable(instance: object) -> tuple[list[object], int]:
    """Return the polygons of an instance that can be drawn, and the number of the others."""
    if not isinstance(instance, list):
        raise unexpected("its polygons as a list", instance)
    kept = [
        polygon
        for polygon in instance
        if not isinstance(polygon, list) or len(polygon) >= MIN_DRAWN_POINTS
    ]
    return kept, len(instance) - len(kept)


def _left_out(tasks: list[_Task], path: Path) -> tuple[str, ...]:
    """Write a warning of the polygons that were left out, if any."""
    names = [task.ref.ref_id for task in tasks if task.num_too_short]
    if not names:
        return ()
    total = sum(task.num_too_short for task in tasks)
    return (
        f"{total} polygons in {path} have fewer than {MIN_DRAWN_POINTS} points and are left out; "
        f"they are of {len(names)} tasks: {first_few(names)}.",
    )
