"""Small data folders in the datasets' exact layouts, for tests of readers and of programs.

In RefCOCO's, every split has three images of 96 x 64 pixels (the last one greyscale, as some of
COCO's are) with a red box on the left, a blue object on the right that is annotated by two
overlapping polygons, and a crowd in run lengths that nobody refers to.  As in the published files,
image ids are not sorted, an image's refs do not follow each other, and the refs' file_name is not
the image's.
PhraseCut's files and custom datasets show the same images.
"""

from __future__ import annotations

import json
import pickle
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw

from refer import splits

HW = (64, 96)
LEFT_POLYGON = [8, 16, 32, 16, 32, 48, 8, 48]
RIGHT_POLYGONS = [[56, 16, 80, 16, 80, 48, 56, 48], [72, 24, 88, 24, 88, 40, 72, 40]]
CROWD_XYXY = (36, 52, 60, 60)
IMAGES_PER_SPLIT = 3
REFS_PER_SPLIT = 6
SENTENCES_PER_SPLIT = 15

LEFT_SENTENCES = ["Red box  on the left", "the red one", "box left of the blue thing"]
RIGHT_SENTENCES = ["the blue thing on the right", "BLUE"]


@dataclass(frozen=True, slots=True)
class MiniRefer:
    """The content of the files, to be changed at will before `write`."""

    dataset: str
    split_by: str
    refs: list[dict[str, Any]]
    instances: dict[str, Any]
    image_folder: str = field(default="images/mscoco/images/train2014")

    def write(
        self,
        root: Path,
        *,
        form: Literal["pickle", "json"] = "pickle",
        protocol: int = 2,
        with_images: bool = True,
    ) -> None:
        """Write <root>/<dataset>/ and, unless told not to, the images."""
        folder = root / self.dataset
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "instances.json").write_text(json.dumps(self.instances), encoding="utf-8")
        if form == "pickle":
            path = folder / f"refs({self.split_by}).p"
            path.write_bytes(pickle.dumps(self.refs, protocol))
        else:
            path = folder / f"refs({self.split_by}).json"
            path.write_text(json.dumps(self.refs), encoding="utf-8")
        if with_images:
            self._write_images(root / self.image_folder)

    def _write_images(self, folder: Path) -> None:
        write_images(folder, [entry["file_name"] for entry in self.instances["images"]])


def write_images(folder: Path, names: list[str]) -> None:
    """Images of the red box, the blue object and the crowd, every third one greyscale."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        image = Image.new("RGB", (HW[1], HW[0]), (200, 200, 190))
        draw = ImageDraw.Draw(image)
        draw.polygon(LEFT_POLYGON, fill=(200, 30, 30))
        for polygon in RIGHT_POLYGONS:
            draw.polygon(polygon, fill=(30, 60, 200))
        draw.rectangle(CROWD_XYXY, fill=(60, 140, 60))
        if index % IMAGES_PER_SPLIT == IMAGES_PER_SPLIT - 1:
            image = image.convert("L")
        image.save(folder / name, quality=95)


def mini_refer(dataset: str = "refcoco", split_by: str | None = None) -> MiniRefer:
    """Three images, six refs and fifteen sentences for each split of a dataset in REFER form."""
    names = list(splits.SPLITS[dataset][split_by or next(iter(splits.SPLITS[dataset]))])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    lefts: list[dict[str, Any]] = []
    rights: list[dict[str, Any]] = []
    for index in range(IMAGES_PER_SPLIT * len(names)):
        image_id = 581857 - 37 * index
        split = names[index // IMAGES_PER_SPLIT]
        images.append(
            {
                "id": image_id,
                "file_name": f"COCO_train2014_{image_id:012d}.jpg",
                "height": HW[0],
                "width": HW[1],
                "license": 1,
                "coco_url": f"http://mscoco.org/{image_id}",
            }
        )
        annotations += _annotations(image_id, first_id=1700000 + 10 * index)
        ref_id, sent_id = 2 * index, 5 * index
        lefts.append(
            _ref(ref_id, 1700000 + 10 * index, image_id, 51, split, sent_id, LEFT_SENTENCES)
        )
        rights.append(
            _ref(
                ref_id + 1, 1700001 + 10 * index, image_id, 44, split, sent_id + 3, RIGHT_SENTENCES
            )
        )
    return MiniRefer(
        dataset=dataset,
        split_by=split_by or next(iter(splits.SPLITS[dataset])),
        refs=lefts + rights[::-1],
        instances={
            "info": {"description": "mini"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": 44, "name": "bottle", "supercategory": "kitchen"},
                {"id": 51, "name": "bowl", "supercategory": "kitchen"},
            ],
        },
        image_folder="images/shapes" if dataset == "shapes" else "images/mscoco/images/train2014",
    )


def _ref(
    ref_id: int,
    ann_id: int,
    image_id: int,
    category_id: int,
    split: str,
    first_sent_id: int,
    raws: list[str],
) -> dict[str, Any]:
    sentences = [
        {
            "sent_id": first_sent_id + i,
            "raw": raw,
            "sent": " ".join(raw.lower().split()),
            "tokens": raw.lower().split(),
        }
        for i, raw in enumerate(raws)
    ]
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": category_id,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


def _annotations(image_id: int, first_id: int) -> list[dict[str, Any]]:
    left, top, right, bottom = CROWD_XYXY
    gap = HW[0] - (bottom - top)
    runs = [left * HW[0] + top] + [bottom - top, gap] * (right - left)
    runs[-1] += (HW[1] - right) * HW[0] - top
    return [
        {
            "id": first_id,
            "image_id": image_id,
            "category_id": 51,
            "segmentation": [LEFT_POLYGON],
            "bbox": [8, 16, 24, 32],
            "area": 768.0,
            "iscrowd": 0,
        },
        {
            "id": first_id + 1,
            "image_id": image_id,
            "category_id": 44,
            "segmentation": RIGHT_POLYGONS,
            "bbox": [56, 16, 32, 32],
            "area": 896.0,
            "iscrowd": 0,
        },
        {
            "id": first_id + 2,
            "image_id": image_id,
            "category_id": 44,
            "segmentation": {"size": list(HW), "counts": runs},
            "bbox": [left, top, right - left, bottom - top],
            "area": 192.0,
            "iscrowd": 1,
        },
    ]


def points(polygon: list[int]) -> list[list[float]]:
    """A polygon of COCO's form in PhraseCut's."""
    return [[x + 0.5, y + 0.25] for x, y in zip(polygon[0::2], polygon[1::2], strict=True)]


@dataclass(frozen=True, slots=True)
class MiniPhraseCut:
    """The content of the files, to be changed at will before `write`."""

    tasks: list[dict[str, Any]]
    sizes: list[dict[str, Any]]

    def write(self, folder: Path, split: str = "val", *, images: str | None = "images") -> None:
        """Write the folder of one split, and images in a folder of it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"refer_{split}.json").write_text(json.dumps(self.tasks), encoding="utf-8")
        (folder / "image_data_split.json").write_text(json.dumps(self.sizes), encoding="utf-8")
        if images is not None:
            names = [
                f"{entry['image_id']}.jpg" for entry in self.sizes if entry["split"] != "train"
            ]
            write_images(folder / images, names)


def mini_phrasecut() -> MiniPhraseCut:
    """Three images with three tasks each: the red box, two blue things, and all three together."""
    red, blues = [points(LEFT_POLYGON)], [[points(polygon)] for polygon in RIGHT_POLYGONS]
    said = [
        ("red box", "bottle", [red]),
        ("blue things on the right", "thing", blues),
        ("things in a row", "things", [red, *blues]),
    ]
    image_ids = [2405700 + 11 * index for index in range(IMAGES_PER_SPLIT)]
    tasks = [
        {
            "task_id": f"{image_id}__{place}",
            "image_id": image_id,
            "ann_ids": [f"{image_id}_{i}" for i in range(len(instances))],
            "instance_boxes": [[8, 16, 24, 32]] * len(instances),
            "Polygons": instances,
            "phrase": phrase,
            "phrase_structure": {"name": name, "attributes": ["red"], "type": "attribute"},
        }
        for place, (phrase, name, instances) in enumerate(said)
        for image_id in image_ids
    ]
    sizes = [
        {"image_id": i, "height": HW[0], "width": HW[1], "split": "val"} for i in image_ids[::-1]
    ]
    unused = {"image_id": 7, "height": 0, "width": 0, "split": "train"}
    return MiniPhraseCut(json.loads(json.dumps(tasks)), [unused, *sizes])


def custom_coco() -> dict[str, Any]:
    """Make a small custom dataset in COCO form: two images, three annotations."""
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": HW[0], "width": HW[1]},
            {"id": 2, "file_name": "b.jpg", "height": HW[0], "width": HW[1]},
        ],
        "annotations": [
            {
                "id": 10,
                "image_id": 2,
                "segmentation": [LEFT_POLYGON],
                "sentences": ["the red box", "box on the left"],
            },
            {"id": 11, "image_id": 2, "segmentation": RIGHT_POLYGONS},
            {
                "id": "twelve",
                "image_id": 1,
                "segmentation": RIGHT_POLYGONS,
                "caption": "The blue thing",
            },
        ],
    }


def png_that_claims(width: int, height: int) -> bytes:
    """A small PNG file whose header says that the image is as large as that."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG file with an EXIF tag that says how the camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    segment = exif.tobytes()
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
