"""What can be downloaded, and where it is published.

The annotations' own host is gone; these are the archived copies that others use. No checksums of
the data are published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from hybridgl.downloads.fetch import RemoteFile
from hybridgl.weights.registry import CLIP_FILES, SAM_FILES, WeightsFile

__all__ = ["COCO_DATASETS", "GROUPS", "ITEMS", "SPACY_MODEL", "Item", "Kind"]


class Kind(Enum):
    """What is done with the files of an item."""

    WEIGHTS = "kept in the weights folder"
    SPACY = "installed beside spaCy"
    ANNOTATIONS = "unpacked to DATA_ROOT/{name}"
    PHRASECUT = "kept in DATA_ROOT/phrasecut"
    COCO_IMAGES = "unpacked to DATA_ROOT/images/mscoco/images/train2014"
    VISUAL_GENOME_IMAGES = "unpacked to DATA_ROOT/phrasecut/images"


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Something that has a name for the command.

    Attributes:
        name: for the command; of annotations also the dataset's.
        kind: what is done with its files.
        about: what it is.
        files: of which it consists.
    """

    name: str
    kind: Kind
    about: str
    files: tuple[RemoteFile, ...] = ()


def _weights(file: WeightsFile, about: str) -> Item:
    remote = RemoteFile(file.name, (file.url,), file.sha256)
    return Item(name=file.item, kind=Kind.WEIGHTS, about=about, files=(remote,))


def _annotations(dataset: str, about: str, archived: str) -> Item:
    url = (
        f"https://web.archive.org/web/{archived}/"
        f"https://bvisionweb1.cs.unc.edu/licheng/referit/data/{dataset}.zip"
    )
    file = RemoteFile(f"{dataset}.zip", (url,))
    return Item(name=dataset, kind=Kind.ANNOTATIONS, about=about, files=(file,))


def _from_one_place(place: str, *names: str) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(name, (f"{place}/{name}",)) for name in names)


SPACY_MODEL = "en_core_web_lg"

COCO_DATASETS = ("refcoco", "refcoco+", "refcocog")
"""Those whose images are of COCO train2014."""

ITEMS: Mapping[str, Item] = {
    item.name: item
    for item in (
        *(_weights(file, f"Segment Anything, {kind}") for kind, file in SAM_FILES.items()),
        *(_weights(file, f"CLIP, {model}") for model, file in CLIP_FILES.items()),
        Item(name="spacy", kind=Kind.SPACY, about=f"spaCy's {SPACY_MODEL}"),
        _annotations("refcoco", "RefCOCO, annotations", "20220413011718"),
        _annotations("refcoco+", "RefCOCO+, annotations", "20220413011656"),
        _annotations("refcocog", "RefCOCOg, annotations", "20220413012904"),
        Item(
            name="phrasecut",
            kind=Kind.PHRASECUT,
            about="PhraseCut, annotations; from github.com/ChenyunWu/PhraseCutDataset by hand, or "
            "from a mirror",
            files=tuple(
                RemoteFile(f"{name}.json", ())
                for name in (
                    *(f"refer_{split}" for split in ("train", "val", "test", "miniv")),
                    "image_data_split",
                )
            ),
        ),
        Item(
            name="coco-train2014",
            kind=Kind.COCO_IMAGES,
            about="COCO train2014, the images that the annotations name; after refcoco, refcoco+ "
            "or refcocog",
            files=_from_one_place("http://images.cocodataset.org/zips", "train2014.zip"),
        ),
        Item(
            name="phrasecut-images",
            kind=Kind.VISUAL_GENOME_IMAGES,
            about="Visual Genome, the images that the annotations name; after phrasecut",
            files=_from_one_place(
                "https://cs.stanford.edu/people/rak248/VG_100K_2", "images.zip", "images2.zip"
            ),
        ),
    )
}
"""By name, in the order of fetching: annotations say which images are needed."""

GROUPS: Mapping[str, tuple[str, ...]] = {"paper": ("sam-vit_h", "clip-ViT-B-16", "spacy")}
"""Names of several items at once."""
