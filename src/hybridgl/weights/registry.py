"""The files that the two sets of weights consist of, with their sources and checksums.

``tiny`` is bundled in the package and knows the shapes world only; ``paper`` is what the published
numbers were made with, and is fetched by the user.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridgl.errors import HybridGLError
from hybridgl.files import file_sha256

__all__ = [
    "CLIP_FILES",
    "SAM_FILES",
    "WeightSet",
    "WeightsFile",
    "weight_set",
    "weights_folder",
]


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file that can be fetched.

    Attributes:
        item: what ``hybridgl download`` calls it.
        name: file name under ``weights_folder()``.
        url: where it is published.
        sha256: its checksum in hexadecimal, or the first digits of it as far as known.
    """

    item: str
    name: str
    url: str
    sha256: str


def _clip(model: str, sha256: str) -> WeightsFile:
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{model}.pt"
    return WeightsFile(f"clip-{model}", f"{model}.pt", url, sha256)


def _sam(kind: str, sha256: str) -> WeightsFile:
    name = f"sam_{kind}_{sha256}.pth"
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{name}"
    return WeightsFile(f"sam-{kind}", name, url, sha256)


CLIP_FILES: Mapping[str, WeightsFile] = {
    model: _clip(model, sha256)
    for model, sha256 in (
        ("ViT-B-16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        ("ViT-B-32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
        ("ViT-L-14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        ("RN50", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
    )
}
"""OpenAI's CLIP models by architecture."""

SAM_FILES: Mapping[str, WeightsFile] = {
    "vit_h": _sam("vit_h", "4b8939"),
    "vit_l": _sam("vit_l", "0b3195"),
    "vit_b": _sam("vit_b", "01ec64"),
}
"""Segment Anything's models by type."""

_TINY = Path(__file__).parent / "tiny"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSet:
    """Local files of one set.

    Attributes:
        clip_weights: CLIP's file.
        clip_model: architecture that the file must have; None takes any.
        sam_checkpoint: SAM's file.
        sam_type: vit_h, vit_l, vit_b or tiny.
        spacy_model: name or folder of a spaCy pipeline.
    """

    clip_weights: Path
    clip_model: str | None
    sam_checkpoint: Path
    sam_type: str
    spacy_model: str

    def missing(self, models: Sequence[str] = ("clip", "sam")) -> list[str]:
        """One line for every file that is not there: what, where, and how to get it.

        Args:
            models: those of "clip" and "sam" that are needed.
        """
        lines = []
        for model in models:
            path, known = self._file(model)
            if not path.is_file():
                published = _published(path, known)
                remedy = _remedy(published, path) if published else "check the path"
                lines.append(f"Expected weights at {path}, found no such file; {remedy}.")
        return lines

    def sha256(self, model: str) -> str:
        """Sha256 of a model's file in hexadecimal.

        Args:
            model: "clip" or "sam".
        """
        path, _ = self._file(model)
        return file_sha256(path)

    def warnings(self, digests: Mapping[str, str]) -> list[str]:
        """One line for every file that has a published one's name, but not its content.

        Args:
            digests: from ``sha256``, by model.
        """
        lines = []
        for model, digest in digests.items():
            path, known = self._file(model)
            published = _published(path, known)
            if published and not digest.startswith(published.sha256):
                lines.append(
                    f"Expected the sha256 of {path} to start with {published.sha256[:12]}, got "
                    f"{digest[:12]}: "
                    f"damaged, or not the published weights; {_remedy(published, path)}."
                )
        return lines

    def _file(self, model: str) -> tuple[Path, Mapping[str, WeightsFile]]:
        """A model's file, and the published ones that it may be."""
        if model == "clip":
            return self.clip_weights, CLIP_FILES
        return self.sam_checkpoint, SAM_FILES


def _published(path: Path, known: Mapping[str, WeightsFile]) -> WeightsFile | None:
    return next((file for file in known.values() if file.name == path.name), None)


def _remedy(published: WeightsFile, path: Path) -> str:
    command = f"hybridgl download {published.item}"
    if path.parent.absolute() != weights_folder().absolute():
        command += f" --weights_folder {shlex.quote(str(path.parent))}"
    return f"run `{command}`, or fetch it from {published.url}"


def weights_folder() -> Path:
    """Where fetched weights lie: ``$HYBRIDGL_WEIGHTS``, or ``~/.cache/hybridgl/weights``."""
    named = os.environ.get("HYBRIDGL_WEIGHTS")
    return Path(named) if named else Path.home() / ".cache" / "hybridgl" / "weights"


def weight_set(
    name: str,
    *,
    clip_model: str | None = None,
    clip_weights: Path | None = None,
    sam_type: str | None = None,
    sam_checkpoint: Path | None = None,
    spacy_model: str | None = None,
) -> WeightSet:
    """The files of a set, each replaced by the argument that names another.

    Args:
        name: "tiny" or "paper".
        clip_model: architecture of CLIP: ViT-B-16, ViT-B-32, ViT-L-14 or RN50.
        clip_weights: CLIP's file.
        sam_type: vit_h, vit_l, vit_b or tiny.
        sam_checkpoint: SAM's file.
        spacy_model: name or folder of a spaCy pipeline.

    Raises:
        HybridGLError: no set, architecture or type has this name.
    """
    if name not in ("tiny", "paper"):
        raise HybridGLError(f"Expected the weights 'tiny' or 'paper', got {name!r}.")
    if clip_model is not None and clip_model not in CLIP_FILES:
        raise HybridGLError(
            f"Expected a CLIP model among {', '.join(CLIP_FILES)}, got {clip_model!r}."
        )
    if sam_type is not None and sam_type not in (*SAM_FILES, "tiny"):
        raise HybridGLError(
            f"Expected a SAM type among {', '.join(SAM_FILES)}, tiny, got {sam_type!r}."
        )
    tiny = name == "tiny"
    folder = weights_folder()
    if clip_model is None and not tiny and clip_weights is None:
        clip_model = "ViT-B-16"
    if clip_weights is None:
        clip_weights = folder / CLIP_FILES[clip_model].name if clip_model else _TINY / "clip.npz"
    if sam_type is None:
        sam_type = "tiny" if tiny else "vit_h"
    if sam_checkpoint is None:
        bundled = sam_type == "tiny"
        sam_checkpoint = _TINY / "sam.npz" if bundled else folder / SAM_FILES[sam_type].name
    if spacy_model is None:
        spacy_model = str(_TINY / "spacy") if tiny else "en_core_web_lg"
    return WeightSet(
        clip_weights=clip_weights,
        clip_model=clip_model,
        sam_checkpoint=sam_checkpoint,
        sam_type=sam_type,
        spacy_model=spacy_model,
    )
