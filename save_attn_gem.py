"""Stage 1: write the GEM map of every noun phrase of a split to the store.

Example:
    python save_attn_gem.py --dataset shapes --split val
"""

from __future__ import annotations

import os

# Before torch loads: on cores that others use too, threads that spin while they wait cost CPU time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial

from evaluation.manifest import find_manifest, write_manifest
from evaluation.run import StoreConfig
from hybridgl.config import HybridGLConfig, ModelConfig, ProfileConfig, ReferenceQuirks
from hybridgl.devices import set_tf32
from hybridgl.errors import ImageError
from hybridgl.images import RgbImage
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.models import Models
from hybridgl.program import ArgumentParser, progress, run_program
from hybridgl.settings import add_arguments
from refer.config import SplitConfig, load_split
from utils.runtime import prefetch

_logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the program's arguments."""
    parser = ArgumentParser(description=__doc__)
    parser.add_version()
    parser.add_config()
    add_arguments(parser, "data", SplitConfig)
    add_arguments(parser, "models", ModelConfig, ProfileConfig)
    add_arguments(parser, "store", StoreConfig)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    arguments = build_parser().parse_args(argv)
    return run_program(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Make what the store lacks."""
    data = SplitConfig.from_arguments(arguments).resolved()
    storage = StoreConfig.from_arguments(arguments)
    chosen = ModelConfig.from_arguments(arguments)
    quirks = ReferenceQuirks.of(ProfileConfig.from_arguments(arguments).profile)
    store = storage.open()
    published = HybridGL.Config.published_clip
    models = Models.from_config(chosen.resolved(data.dataset, published_clip=published))
    set_tf32(enabled=chosen.tf32)
    models.require("clip")
    method = HybridGL(models, HybridGLConfig(quirks=quirks), store)
    _ = method.clip  # a wrong file is found before any work
    split = load_split(data)
    image_ids = storage.shard.of(split.images) if storage.shard else list(split.images)
    write_manifest(store, find_manifest(store, models, ("clip", "parser")))
    refs_by_image = split.refs_by_image()

    def read(image_id: int) -> tuple[RgbImage | None, list[str]]:
        sentences = [one.raw for ref in refs_by_image[image_id] for one in ref.sentences]
        try:
            image = split.open_image(image_id)
            _ = image.pil
        except ImageError as error:
            if image_id not in split.image_errors.unreadable:
                _logger.warning("%s No map is made for it.", error)
            return None, []
        return image, [expression.noun_phrase for expression in method.parse(sentences)]

    num_images = 0
    with store.background_writes():
        for image, phrases in progress(
            prefetch(read, image_ids), "GEM maps", "image", total=len(image_ids)
        ):
            if image is not None and phrases:
                models.batches.run(partial(method.patch_similarity, image, phrases))
            num_images += image is not None
    skipped = len(image_ids) - num_images
    print(
        f"maps of noun phrases in {num_images} images in {store.root}/: {store.hits['gem']} found "
        f"there, {store.misses['gem']} made"
        + (f"; {skipped} images cannot be read." if skipped else ".")
    )


if __name__ == "__main__":
    sys.exit(main())
