"""The shapes world on disk, in the form of a REFER dataset.

``<root>/shapes/`` holds ``instances.json`` (COCO style, masks as run lengths of the visible
pixels), ``refs(synthetic).p`` and the manifest ``world.json``; ``<root>/images/shapes/`` holds the
images. Every scene depends on (seed, split, index) alone, so the same seed gives the same bytes
and a bigger world extends a smaller one. Scenes for training have a split number of their own:
no training program can meet an image of a split.

Run ``python -m refer.shapes.world --root refer/data`` to write it.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import pickle
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybridgl.errors import SettingError
from hybridgl.files import file_sha256
from hybridgl.program import progress
from refer.shapes.grammar import Expression, expressions_for
from refer.shapes.scene import RING_HOLE, SHAPES, Scene, sample_scene

__all__ = [
    "DEFAULT_SIZES",
    "GENERATOR_VERSION",
    "ensure_world",
    "main",
    "run_lengths",
    "training_scene",
    "write_world",
]

_logger = logging.getLogger(__name__)

GENERATOR_VERSION = 1
"""Raised whenever the same seed would give other bytes."""

DEFAULT_SIZES: Mapping[str, int] = {"train": 40, "val": 100, "testA": 40, "testB": 40}
"""Images per split."""

_SPLIT_NUMBERS = {"train": 1, "val": 2, "testA": 3, "testB": 4}
_TRAINING_NUMBER = 100
_LANGUAGE_STREAM = 1
_IDS_PER_SPLIT = 1_000_000
_MAX_SEED = 2**32 - 1
_CATEGORY_IDS = {shape: number for number, shape in enumerate(SHAPES, start=1)}


def training_scene(seed: int, index: int) -> Scene:
    """Draw scene ``index`` of the endless stream that training programs learn from.

    Its entropy differs from that of every scene of every split, whatever the seeds.

    Raises:
        SettingError: the seed is not from 0 to 2**32 - 1.
        ValueError: the index is negative.
    """
    return sample_scene(_generator(seed, _TRAINING_NUMBER, index))


def _generator(seed: int, *numbers: int) -> np.random.Generator:
    # A seed of more than 32 bits would spill into the next number and could meet another stream.
    if not 0 <= seed <= _MAX_SEED:
        raise SettingError(
            f"Expected a seed from 0 to {_MAX_SEED}, got {seed}; choose one of those."
        )
    return np.random.default_rng(np.random.SeedSequence((seed, *numbers)))


def run_lengths(mask_HW: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Write a mask as COCO's uncompressed run lengths: down the columns, background first.

    >>> run_lengths(np.array([[False, True], [False, True]]))
    {'size': [2, 2], 'counts': [2, 2]}

    Args:
        mask_HW: bool, (H, W).
    """
    pixels = mask_HW.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    bounds = np.concatenate(([0], changes, [pixels.size]))
    counts = np.diff(bounds).tolist()
    return {"size": list(mask_HW.shape), "counts": [0, *counts] if pixels[0] else counts}


@dataclass(frozen=True, slots=True)
class _Contents:
    """The lists of the two annotation files, filled scene by scene."""

    images: list[dict[str, object]] = field(default_factory=list)
    annotations: list[dict[str, object]] = field(default_factory=list)
    refs: list[dict[str, object]] = field(default_factory=list)


def write_world(
    root: Path,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] = DEFAULT_SIZES,
) -> Path:
    """Write the world below a data root, all of it or nothing.

    A whole world of the same seed, sizes and generator is left as it is; any other is replaced.

    Args:
        root: the data root, such as ``refer/data``; made if need be.
        seed: from 0 to 2**32 - 1.
        sizes: images of each split; a split left out has none.

    Returns:
        The folder with the annotations, ``<root>/shapes``.

    Raises:
        SettingError: an unknown split, a size out of range or a seed out of range.
        FileExistsError: files that are no shapes world are in its place.
        OSError: the root cannot be written.
    """
    for split, size in sizes.items():
        if split not in _SPLIT_NUMBERS:
            raise SettingError(
                f"Expected splits among {', '.join(_SPLIT_NUMBERS)}, got {split!r}; rename it."
            )
        if not 0 <= size < _IDS_PER_SPLIT:
            raise SettingError(
                f"Expected 0 to {_IDS_PER_SPLIT - 1} images in {split}, got {size}; "
                "choose a number in that range."
            )
    parameters = {
        "generator": GENERATOR_VERSION,
        "seed": seed,
        "sizes": {split: sizes.get(split, 0) for split in _SPLIT_NUMBERS},
    }
    if _whole_world(root) == parameters:
        return root / "shapes"
    _refuse_to_replace_other_files(root)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".shapes-", dir=root) as folder:
        build = Path(folder)
        _build(build, seed, sizes)
        files = {
            path.relative_to(build).as_posix(): file_sha256(path)
            for path in sorted(build.rglob("*"))
            if path.is_file()
        }
        _dump_json(build / "shapes" / "world.json", {**parameters, "files": files})
        try:
            _install(build, root)
        except OSError:
            # Another process may have put the same world in place meanwhile.
            if _whole_world(root) != parameters:
                raise
    return root / "shapes"


def ensure_world(root: Path) -> Path:
    """Return the world below a data root, written first if there is none.

    A whole world of this generator is taken as it is, whatever its seed and sizes. One that is
    damaged or of an older generator is written again with its own seed and sizes, and only where
    there is none the default one.

    Args:
        root: the data root, such as ``refer/data``.

    Returns:
        The folder with the annotations, ``<root>/shapes``.

    Raises:
        FileExistsError: files that are no shapes world are in its place.
        OSError: the root cannot be written.
    """
    found = _whole_world(root)
    if found is not None and found["generator"] == GENERATOR_VERSION:
        return root / "shapes"
    seed, sizes = _parameters_below(root)
    if (root / "shapes").exists():
        _logger.warning(
            "The shapes world below %s is damaged or of another version: writing it again, with "
            "seed %d and sizes %s.",
            root,
            seed,
            dict(sizes),
        )
    return write_world(root, seed=seed, sizes=sizes)


def _parameters_below(root: Path) -> tuple[int, Mapping[str, int]]:
    """Read seed and sizes of the world below the root, whole or not; the defaults if unreadable."""
    try:
        manifest = json.loads((root / "shapes" / "world.json").read_text(encoding="utf-8"))
        sizes = {split: int(manifest["sizes"][split]) for split in _SPLIT_NUMBERS}
        return int(manifest["seed"]), sizes
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return 0, DEFAULT_SIZES


def _whole_world(root: Path) -> dict[str, object] | None:
    """Read the parameters of the world below the root; None if it is missing or damaged."""
    try:
        manifest = json.loads((root / "shapes" / "world.json").read_text(encoding="utf-8"))
        files = manifest.pop("files")
        if all(file_sha256(root / name) == sha256 for name, sha256 in files.items()):
            return {"generator": None, **manifest}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return None


def _refuse_to_replace_other_files(root: Path) -> None:
    """Refuse to delete what this module did not write."""
    folder, images = root / "shapes", root / "images" / "shapes"
    foreign = [folder] if folder.exists() and not (folder / "world.json").is_file() else []
    if images.is_dir():
        foreign += [path for path in images.iterdir() if not path.match("shapes_*_*.png")]
    if foreign:
        raise FileExistsError(
            f"Expected nothing but a shapes world to replace below {root}, got {foreign[0]}; "
            "move it away."
        )


def _dump_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def _install(build: Path, root: Path) -> None:
    """Move a finished world into place; the annotations go first and come last."""
    (root / "images").mkdir(exist_ok=True)
    for old, aside in ((root / "shapes", "old"), (root / "images" / "shapes", "old-images")):
        if old.exists():
            old.rename(build / aside)
    for place in ("images/shapes", "shapes"):
        (build / place).rename(root / place)


def _build(build: Path, seed: int, sizes: Mapping[str, int]) -> None:
    image_folder = build / "images" / "shapes"
    image_folder.mkdir(parents=True)
    (build / "shapes").mkdir()
    contents = _Contents()
    todo = [(split, index) for split in _SPLIT_NUMBERS for index in range(sizes.get(split, 0))]
    for split, index in progress(todo, "shapes world", "image"):
        scene = sample_scene(_generator(seed, _SPLIT_NUMBERS[split], index))
        language = _generator(seed, _SPLIT_NUMBERS[split], index, _LANGUAGE_STREAM)
        image_id = _SPLIT_NUMBERS[split] * _IDS_PER_SPLIT + index
        file_name = f"shapes_{split}_{index:06d}.png"
        # PNG: the same pixels whatever the version of the codec.
        Image.fromarray(scene.image_HW3).save(image_folder / file_name, compress_level=1)
        _append(contents, scene, language, split=split, image_id=image_id, file_name=file_name)
    _dump_json(
        build / "shapes" / "instances.json",
        {
            "images": contents.images,
            "annotations": contents.annotations,
            "categories": [{"id": number, "name": name} for name, number in _CATEGORY_IDS.items()],
        },
    )
    (build / "shapes" / "refs(synthetic).p").write_bytes(pickle.dumps(contents.refs, protocol=2))


def _append(
    contents: _Contents,
    scene: Scene,
    rng: np.random.Generator,
    *,
    split: str,
    image_id: int,
    file_name: str,
) -> None:
    """Add one scene to the lists: its image, every object's annotation, and its refs."""
    height, width = scene.labels_HW.shape
    contents.images.append(
        {"id": image_id, "file_name": file_name, "height": height, "width": width}
    )
    for index, item in enumerate(scene.objects):
        mask_HW = scene.mask_HW(index)
        rows, cols = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
        left, top = int(cols[0]), int(rows[0])
        contents.annotations.append(
            {
                "id": _annotation_id(image_id, index),
                "image_id": image_id,
                "category_id": _CATEGORY_IDS[item.shape],
                "segmentation": run_lengths(mask_HW),
                "bbox": [left, top, int(cols[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "area": int(mask_HW.sum()),
                "iscrowd": 0,
            }
        )
    for number, (index, expressions) in enumerate(_choose_referents(scene, rng)):
        ref_id = image_id * 10 + number
        sentences = [
            _sentence(ref_id * 10 + place, expression)
            for place, expression in enumerate(expressions)
        ]
        contents.refs.append(
            {
                "ref_id": ref_id,
                "ann_id": _annotation_id(image_id, index),
                "image_id": image_id,
                "category_id": _CATEGORY_IDS[scene.objects[index].shape],
                "split": split,
                "file_name": file_name,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )


def _annotation_id(image_id: int, index: int) -> int:
    return image_id * 10 + index


def _sentence(sent_id: int, expression: Expression) -> dict[str, object]:
    tokens = [word for word in expression.words if word != "."]
    return {
        "sent_id": sent_id,
        "sent": " ".join(tokens),
        "raw": expression.raw,
        "tokens": tokens,
        "kind": expression.kind,
    }


def _choose_referents(
    scene: Scene, rng: np.random.Generator
) -> Iterator[tuple[int, tuple[Expression, ...]]]:
    """Choose two or three objects with one to three expressions each, 4 or 5 in all.

    An object inside a ring comes first: few scenes have one.
    """
    wanted_refs, wanted_sentences = int(rng.integers(2, 4)), int(rng.integers(4, 6))
    order = rng.permutation(len(scene.objects))
    for index in sorted(order, key=lambda index: not _in_a_ring(scene, index)):
        if wanted_refs <= 0 or wanted_sentences <= 0:
            return
        share = -(-wanted_sentences // wanted_refs)
        expressions = expressions_for(scene, int(index), rng, share)
        if expressions:
            wanted_refs -= 1
            wanted_sentences -= len(expressions)
            yield int(index), expressions


def _in_a_ring(scene: Scene, index: int) -> bool:
    item = scene.objects[index]
    return any(
        math.hypot(item.x - ring.x, item.y - ring.y) < RING_HOLE * ring.radius
        for ring in scene.objects
        if ring.shape == "ring" and ring is not item
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Write the shapes world from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m refer.shapes.world", description="Write the shapes world as REFER data."
    )
    parser.add_argument("--root", type=Path, default=Path("refer/data"), help="data root")
    parser.add_argument("--seed", type=int, default=0)
    for split, size in DEFAULT_SIZES.items():
        parser.add_argument(f"--{split}", type=int, default=size, metavar="N", help="images")
    options = parser.parse_args(argv)
    sizes = {split: getattr(options, split) for split in DEFAULT_SIZES}
    try:
        write_world(options.root, seed=options.seed, sizes=sizes)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
