"""Stage 1: write the GEM map of every noun phrase of a split to the store, one file per image.

Example:
    python save_attn_gem.py --dataset shapes --split val
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from evaluation.shards import add_shard_argument
from hybridgl.arguments import (
    add_model_arguments,
    method_config_from_arguments,
    models_from_arguments,
)
from hybridgl.errors import DataError, HybridGLError, ImageError
from hybridgl.images import RgbImage
from hybridgl.methods.hybridgl import HybridGL
from refer.arguments import (
    add_split_arguments,
    check_split_arguments,
    split_from_arguments,
)
from refer.dataset import Ref
from utils.runtime import add_store_arguments, prefetch, progress, run_program, store_from_arguments


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
    return run_program(lambda: run(arguments), expected=(HybridGLError, DataError, OSError))


def run(arguments: argparse.Namespace) -> None:
    """Make what the store lacks."""
    check_split_arguments(arguments)
    store = store_from_arguments(arguments)
    models = models_from_arguments(arguments)
    models.require("clip")
    model = HybridGL(models, method_config_from_arguments(arguments), store)
    model.load()
    split = split_from_arguments(arguments)
    image_ids = arguments.shard.image_ids(split) if arguments.shard else list(split.images)
    refs_by_image = split.refs_by_image()
    num_maps = num_images = 0
    raws = {image_id: _raw_sentences(refs_by_image[image_id]) for image_id in image_ids}
    every = list(dict.fromkeys(raw for some in raws.values() for raw in some))
    phrase_of = {r: e.noun_phrase for r, e in zip(every, model.parse(every), strict=True)}

    def read(image_id: int) -> tuple[int, RgbImage | None]:
        try:
            image = split.open_image(image_id)
            _ = image.pil
        except ImageError as error:
            split.warn_unreadable(image_id, error)
            return image_id, None
        return image_id, image

    with store.background_writes():
        opened = progress(prefetch(read, image_ids), "GEM maps", "image", total=len(image_ids))
        for image_id, image in opened:
            if image is not None:
                phrases = {phrase_of[raw] for raw in raws[image_id]}
                num_maps += len(model.patch_similarity(image, sorted(phrases)))
                num_images += 1
    skipped = len(image_ids) - num_images
    print(
        f"maps of {num_maps} noun phrases in {num_images} images in {store.root}/: "
        f"{store.hits['gem']} images found there, {store.misses['gem']} made"
        + (f"; {skipped} images cannot be read." if skipped else ".")
    )


def _raw_sentences(refs: Sequence[Ref]) -> list[str]:
    return [sentence.raw for ref in refs for sentence in ref.sentences]


if __name__ == "__main__":
    sys.exit(main())
