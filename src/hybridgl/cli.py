"""The command ``hybridgl``: masks in images, the weights that this takes, and what is missing.

What each command needs is imported when it runs, so that ``--help`` waits for no model's package.

Example:
    hybridgl download paper
    hybridgl segment photo.jpg "the cat left of the red chair"
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hybridgl.doctor import add_doctor_arguments, doctor
from hybridgl.download import add_download_arguments, download
from hybridgl.errors import SettingError
from hybridgl.files import atomic_write_bytes, check_folder
from hybridgl.program import ArgumentParser, run_program

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hybridgl.results import Segmentation

__all__ = ["main"]

Report = Callable[[str], None]

_FORMATS: dict[str, dict[str, str]] = {
    "--output": {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"},
    "--mask": {".png": "PNG"},
}
"""Pillow's formats by what a file name ends in; a mask must come back as it was."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit status: 0, 1 where ``doctor`` finds something wrong, 2 after an error that the user can
        fix, 130 after an interruption.
    """
    # Before torch loads, as in the two programs of the clone.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = sys.argv[1:] if argv is None else list(argv)
    return run_program(lambda: _run(words))


def _run(words: list[str]) -> bool | None:
    parser = ArgumentParser(prog="hybridgl", description="Masks for what words refer to.")
    parser.add_version()
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, about, add_arguments, run in (
        ("segment", "mask of what an expression refers to", _add_segment_arguments, _segment),
        ("download", "published weights", add_download_arguments, download),
        ("doctor", "what is missing or damaged, and what fixes it", add_doctor_arguments, doctor),
    ):
        command = commands.add_parser(name, help=about)
        command.set_defaults(run=run)
        if name in words[:1]:  # what the arguments of others import takes seconds
            add_arguments(command)
    arguments = parser.parse_args(words)
    done: bool | None = arguments.run(arguments, functools.partial(print, flush=True))
    return done


def _add_segment_arguments(parser: ArgumentParser) -> None:
    from hybridgl.config import HybridGLConfig, ModelConfig, Profile
    from hybridgl.settings import add_arguments

    parser.add_config()
    parser.add_argument("image", type=Path, metavar="IMAGE", help="an image file")
    parser.add_argument("expression", metavar="EXPRESSION", help='such as "the cat on the left"')
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where the image with the mask goes, as .png, .jpg or .webp (default: "
        "IMAGE-segmented.png, here)",
    )
    parser.add_argument("--mask", type=Path, metavar="FILE.png", help="where the bare mask goes")
    parser.add_argument(
        "--reject_below",
        type=float,
        metavar="SIMILARITY",
        help="least similarity of a prediction; below it nothing matches, and the mask is empty "
        "(default: the best proposal is predicted, however poor)",
    )
    add_arguments(parser, "models", ModelConfig)
    parser.add_argument(
        "--profile",
        choices=[profile.value for profile in Profile],
        default=Profile.CORRECTED.value,
        help="corrected: what the method is meant to be; reference: as released, quirks included "
        "(default: corrected)",
    )
    add_arguments(parser, "method", HybridGLConfig)


def _segment(arguments: argparse.Namespace, report: Report) -> bool:
    import numpy as np

    from hybridgl.config import HybridGLConfig, ModelConfig, Profile, ReferenceQuirks
    from hybridgl.figures import overlay
    from hybridgl.images import RgbImage
    from hybridgl.methods.hybridgl import HybridGL

    output = arguments.output or Path(f"{arguments.image.stem}-segmented.png")
    _check_target(output, arguments.image, "--output")
    if arguments.mask:
        _check_target(arguments.mask, arguments.image, "--mask")
    if arguments.mask and arguments.mask.resolve() == output.resolve():
        raise SettingError(
            f"Expected two files for image and mask, got {output} twice; rename one."
        )
    image = RgbImage(arguments.image)
    quirks = ReferenceQuirks.of(Profile(arguments.profile))
    config = HybridGLConfig.from_arguments(arguments, quirks=quirks)
    model = HybridGL.from_config(ModelConfig.from_arguments(arguments), config)
    result = model.segment(
        arguments.image, arguments.expression, reject_below=arguments.reject_below
    )
    _write_image(output, overlay(image.pixels_HW3, result.mask), "--output")
    if arguments.mask:
        _write_image(arguments.mask, result.mask.astype(np.uint8) * 255, "--mask")
    report(_description(result))
    report(f"image        {output} (prediction outlined in magenta, the rest faded)")
    if arguments.mask:
        report(f"mask         {arguments.mask}")
    return True


def _description(result: Segmentation) -> str:
    """Return what was read off the sentence, the predicted box, and the candidates' scores."""
    read, box = result.expression, result.box
    lines = [
        f"noun phrase  {read.noun_phrase}",
        f"other nouns  {', '.join(read.other_noun_phrases) or '-'}",
        f"position     {read.position.value}",
        f"relation     {read.relation.value}",
        f"proposals    {len(result.similarities)}",
    ]
    if result.unmet_words:
        lines.append(f"unmet words  {', '.join(result.unmet_words)}: CLIP has never seen them")
    if box:
        lines.append("box          x {}, y {}, w {}, h {}".format(*box))
    elif result.candidates:
        lines.append(f"box          no match: the best similarity is {result.similarity:.2f}")
    else:
        lines.append("box          no mask was found")
    if result.candidates:
        lines.append("candidates   similarity   relation  coherence      score  box")
    for candidate in result.candidates:
        lines.append(
            f"{'*' if candidate.chosen else '':>10}   {candidate.similarity:10.2f} "
            f"{candidate.relation:10.3f} {candidate.coherence:10.3f} {candidate.score:10.3f}  "
            f"{candidate.box}"
        )
    return "\n".join(lines)


def _check_target(path: Path, image: Path, option: str) -> None:
    """Refuse, before any work, a path that cannot be written to."""
    formats = _FORMATS[option]
    if path.suffix.lower() not in formats:
        raise SettingError(
            f"Expected a file name that ends in {' or '.join(formats)} for {option}, got {path}; "
            f"rename it."
        )
    if path.is_dir():
        raise SettingError(f"Expected a file for {option}, got the folder {path}; name a file.")
    check_folder(path.parent, option)
    if path.exists() and image.exists() and path.samefile(image):
        raise SettingError(f"Expected another file than the image itself, got {path}; rename it.")


def _write_image(path: Path, pixels: NDArray[np.uint8], option: str) -> None:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, _FORMATS[option][path.suffix.lower()], quality=95)
    atomic_write_bytes(path, content.getvalue(), option=option)
