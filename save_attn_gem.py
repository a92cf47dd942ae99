"""Stage 1: write the GEM map of every noun phrase of a split to the store, one file per image.

Example:
    python save_attn_gem.py --dataset shapes --split val
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from hybridgl.arguments import add_model_arguments, model_from_arguments
from hybridgl.errors import UserError
from refer.arguments import (
    add_split_arguments,
    check_split_arguments,
    split_from_arguments,
)
from refer.errors import DataError
from suite.evaluation import open_image
from utils.runtime import add_store_arguments, run_program, store_from_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_split_arguments(parser)
    add_model_arguments(parser)
    add_store_arguments(parser)
    arguments = parser.parse_args(argv)
    return run_program(lambda: run(arguments), expected=(UserError, DataError, OSError))


def run(arguments: argparse.Namespace) -> None:
    """Make what the store lacks."""
    check_split_arguments(arguments)
    store = store_from_arguments(arguments)
    model = model_from_arguments(arguments, store)
    model.load()
    split = split_from_arguments(arguments)
    num_maps = 0
    for image_id, refs in tqdm(
        split.refs_by_image().items(), desc="GEM maps", unit="image", disable=None
    ):
        sentences = [sentence.raw for ref in refs for sentence in ref.sentences]
        phrases = {expression.noun_phrase for expression in model.parse(sentences)}
        image = open_image(split, image_id)
        num_maps += len(model.low_resolution_maps(image, sorted(phrases)))
    print(
        f"maps of {num_maps} noun phrases in {len(split.images)} images in {store.root}/: "
        f"{store.hits['gem']} images found there, {store.misses['gem']} made."
    )


if __name__ == "__main__":
    sys.exit(main())
