"""The command ``hybridgl``: masks in images of one's own, and the files that it takes.

Example:
    hybridgl download paper
    hybridgl segment photo.jpg "the cat left of the red chair" --weights paper
"""

from __future__ import annotations

import argparse
import functools
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybridgl.arguments import add_model_arguments, model_from_arguments
from hybridgl.doctor import add_doctor_arguments, doctor
from hybridgl.downloads.command import add_download_arguments, download
from hybridgl.errors import HybridGLError
from hybridgl.figures import overlay
from hybridgl.images import RgbImage
from hybridgl.methods.hybridgl import Segmentation

__all__ = ["main"]

_FAILED = 2
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit status: 0, 1 where ``doctor`` finds something wrong, 2 after an error that the user can
        fix, 130 after an interrupted download.
    """
    parser = argparse.ArgumentParser(prog="hybridgl", description="Masks for what words refer to.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("segment", help="mask of what an expression refers to")
    command.add_argument("image", type=Path, metavar="IMAGE", help="an image file")
    command.add_argument("expression", metavar="EXPRESSION", help='such as "the cat on the left"')
    command.add_argument(
        "--output",
        type=Path,
        metavar="FILE.png",
        help="where the image with the mask goes (default: IMAGE-segmented.png, here)",
    )
    command.add_argument("--mask", type=Path, metavar="FILE.png", help="where the bare mask goes")
    add_model_arguments(command)
    command.set_defaults(run=_segment)
    command = commands.add_parser("download", help="published weights and datasets")
    add_download_arguments(command)
    command.set_defaults(run=_download)
    command = commands.add_parser("doctor", help="what is missing or damaged, and what fixes it")
    add_doctor_arguments(command)
    command.set_defaults(run=_doctor)
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names and words that the terminal cannot show are no reason to stop.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status: int = arguments.run(arguments)
    except (HybridGLError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return _FAILED
    return status


def _doctor(arguments: argparse.Namespace) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.ERROR)
    return 0 if doctor(arguments, print) else 1


def _download(arguments: argparse.Namespace) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        download(arguments, functools.partial(print, flush=True))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return _INTERRUPTED
    return 0


def _segment(arguments: argparse.Namespace) -> int:
    output = arguments.output or Path(f"{arguments.image.stem}-segmented.png")
    for path in filter(None, (output, arguments.mask)):
        _check_target(path, arguments.image)
    if arguments.mask and arguments.mask.resolve() == output.resolve():
        raise HybridGLError(
            f"Expected two files for image and mask, got {output} twice. Rename one."
        )
    image = RgbImage(arguments.image)
    model = model_from_arguments(arguments)
    result = model.segment(arguments.image, arguments.expression)
    _write_png(output, overlay(image.pixels_HW3, result.mask))
    if arguments.mask:
        _write_png(arguments.mask, result.mask.astype(np.uint8) * 255)
    print(_description(result))
    print(f"image        {output} (prediction outlined in magenta, the rest faded)")
    if arguments.mask:
        print(f"mask         {arguments.mask}")
    return 0


def _description(result: Segmentation) -> str:
    """What was read off the sentence, the box of the pick, and the candidates' scores."""
    read, box = result.expression, result.box
    lines = [
        f"noun phrase  {read.noun_phrase}",
        f"other nouns  {', '.join(read.other_noun_phrases) or '-'}",
        f"position     {read.position.value}",
        f"relation     {read.relation.value}",
        f"proposals    {len(result.scores)}",
        f"box          {'x {}, y {}, w {}, h {}'.format(*box) if box else 'no mask was found'}",
    ]
    if result.candidates:
        lines.append("candidates   similarity   relation  coherence      score  box")
        chosen = max(result.candidates, key=lambda candidate: candidate.score)
    for candidate in result.candidates:
        lines.append(
            f"{'*' if candidate is chosen else '':>10}   {candidate.similarity:10.2f} "
            f"{candidate.relation:10.3f} {candidate.coherence:10.3f} {candidate.score:10.3f}  "
            f"{candidate.box}"
        )
    return "\n".join(lines)


def _check_target(path: Path, image: Path) -> None:
    """Refuse, before any work, a path that no PNG can be written to."""
    if path.suffix.lower() != ".png":
        raise HybridGLError(f"Expected a file name that ends in .png, got {path}. Rename it.")
    if path.is_dir() or not path.parent.is_dir():
        raise HybridGLError(
            f"Expected a file in a folder that is there, got {path}. Make the folder."
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise HybridGLError(
            f"Expected a folder that can be written, got {path.parent}. Give another."
        )
    if path.exists() and image.exists() and path.samefile(image):
        raise HybridGLError(f"Expected another file than the image itself, got {path}. Rename it.")


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a file whole or not at all."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.getvalue())
        partial.replace(path)
    except OSError as error:
        raise HybridGLError(f"Cannot write {path}: {error.strerror}. Give another file.") from error
    finally:
        partial.unlink(missing_ok=True)
