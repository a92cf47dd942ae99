"""Stage 1: write the GEM map of every noun phrase of a split to the store, one file per image.

Example:
    python save_attn_gem.py --dataset shapes --split val
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hybridgl.arguments import (
    add_model_arguments,
    backbones_from_arguments,
    method_config_from_arguments,
)
from hybridgl.errors import PictureError, UserError
from hybridgl.pipeline import HybridGL
from refer.arguments import (
    add_split_arguments,
    check_split_arguments,
    split_from_arguments,
)
from refer.errors import DataError
from suite.pictures import open_image, warn_unreadable
from suite.shards import add_shard_argument
from utils.runtime import add_store_arguments, progress, run_program, store_from_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_split_arguments(parser)
    add_model_arguments(parser)
    add_store_arguments(parser)
    add_shard_argument(parser)
    arguments = parser.parse_args(argv)
    return run_program(lambda: run(arguments), expected=(UserError, DataError, OSError))


def run(arguments: argparse.Namespace) -> None:
    """Make what the store lacks."""
    check_split_arguments(arguments)
    store = store_from_arguments(arguments)
    backbones = backbones_from_arguments(arguments)
    backbones.require("clip")
    model = HybridGL(backbones, method_config_from_arguments(arguments), store)
    model.load()
    split = split_from_arguments(arguments)
    image_ids = arguments.shard.image_ids(split) if arguments.shard else list(split.images)
    refs_by_image = split.refs_by_image()
    num_maps = num_images = 0
    for image_id in progress(image_ids, "GEM maps", "image"):
        refs = refs_by_image[image_id]
        sentences = [sentence.raw for ref in refs for sentence in ref.sentences]
        phrases = {expression.noun_phrase for expression in model.parse(sentences)}
        try:
            image = open_image(split, image_id)
            num_maps += len(model.low_resolution_maps(image, sorted(phrases)))
            num_images += 1
        except PictureError as error:
            warn_unreadable(split, image_id, error)
    skipped = len(image_ids) - num_images
    print(
        f"maps of {num_maps} noun phrases in {num_images} images in {store.root}/: "
        f"{store.hits['gem']} images found there, {store.misses['gem']} made"
        + (f"; {skipped} images cannot be read." if skipped else ".")
    )


if __name__ == "__main__":
    sys.exit(main())
