"""Registry of the weights: which files the two sets consist of, their sources and checksums.

``tiny`` is bundled in the package and knows the shapes world only; ``paper`` is what the published
numbers were made with, and is fetched by the user.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from hybridgl.errors import SettingError, WeightsError
from hybridgl.files import file_sha256
from hybridgl.timing import timer

__all__ = [
    "ACTIVATIONS",
    "CLIP_FILES",
    "PAPER",
    "RELEASED_PARSER",
    "SAM_FILES",
    "SPACY_MODEL",
    "Parser",
    "WeightSet",
    "WeightsFile",
    "activation_of",
    "is_torchscript",
    "known_activation",
    "weight_set",
    "weights_folder",
]


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """Weights that ``hybridgl download`` fetches.

    Attributes:
        item: their name there.
        name: file name under ``weights_folder()``.
        url: where they are published.
        sha256: checksum in hexadecimal, or as many first digits of it as are known.
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

ACTIVATIONS = {"gelu": "GELU", "quickgelu": "QuickGELU"}
"""Of CLIP's blocks, by the values of ``--clip_activation``."""

_ACTIVATION_BY_NAME = (
    (r"quick_?gelu", "quickgelu"),
    (r"dfn2b.*39b|metaclip_altogether|v1\.2_altogether", "gelu"),
    (r"patch32_clip_224\.laion400m", "quickgelu"),
    (r"laion|datacomp|commonpool", "gelu"),
    (r"openai|metaclip|dfn[25]b|fullcc2\.5b|[bl]\d\d_400m|yfcc15m|cc12m", "quickgelu"),
)
"""What the names say under which CLIPs are published; the first that matches counts. Source: the
table of pretrained models in open_clip 3.3, and its names on Hugging Face."""

_OTHER_STATISTICS = r"laion2b[_-]s32b[_-]b82k"
"""In the names of CLIPs that were trained on images normalised otherwise. Source: as above."""

_FOLDERS_OF_NAMES = 3
"""Above a file, whose names may say what it is: as many as a cache of Hugging Face has."""

SPACY_MODEL = "en_core_web_lg"
"""The parser that the published numbers were made with."""


@dataclass(frozen=True, slots=True)
class Parser:
    """Which parser reads the sentences.

    Attributes:
        model: name of the pipeline.
        model_version: its version; None where it is not known.
        spacy_version: of the package that runs it; None where it is not installed.
    """

    model: str
    model_version: str | None
    spacy_version: str | None

    def __str__(self) -> str:
        model, spacy = self.model_version or "of unknown version", self.spacy_version or "unknown"
        return f"{self.model} {model} under spaCy {spacy}"

    @property
    def is_released(self) -> bool:
        """Whether it is the released program's, up to the last part of spaCy's version."""
        released, spacy = RELEASED_PARSER, (self.spacy_version or "").split(".")
        return (self.model, self.model_version, spacy[:2]) == (
            released.model,
            released.model_version,
            (released.spacy_version or "").split(".")[:2],
        )


RELEASED_PARSER = Parser(SPACY_MODEL, "3.7.1", "3.7.6")
"""The released program's. Source: its environment (third_party/hybridgl-released.md)."""

PAPER = ("sam-vit_h", "clip-ViT-B-16", "spacy")
"""What ``hybridgl download paper`` fetches."""

_BUNDLED = Path(__file__).parent / "tiny"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSet:
    """Local files of CLIP, SAM and the parser.

    Attributes:
        clip_weights: CLIP's file.
        clip_model: architecture that the file must have; None takes any.
        sam_checkpoint: SAM's file.
        sam_type: vit_h, vit_l, vit_b or tiny.
        spacy_model: name or folder of a spaCy pipeline.
        clip_activation: activation of CLIP's blocks that is asked for, a key of ``ACTIVATIONS``;
            None takes what is known of the file.
    """

    clip_weights: Path
    clip_model: str | None
    sam_checkpoint: Path
    sam_type: str
    spacy_model: str
    clip_activation: str | None = None

    @property
    def activation(self) -> str:
        """Activation of CLIP's blocks, a key of ``ACTIVATIONS``: QuickGELU where it is unknown."""
        return activation_of(self.clip_weights, self.clip_activation)

    @property
    def parser(self) -> Parser:
        """The parser, as far as its own files say which it is: it need not be loaded."""
        name, model_version = self.spacy_model, _version(self.spacy_model)
        try:
            meta = json.loads((Path(name) / "meta.json").read_text(encoding="utf-8"))
            name, model_version = f"{meta['lang']}_{meta['name']}", meta["version"]
        except (OSError, ValueError, KeyError):
            pass  # a package, or nothing that can be loaded
        return Parser(name, model_version, _version("spacy"))

    def path(self, model: str) -> Path:
        """Return the file of a model, or what names the parser's pipeline.

        Args:
            model: "clip", "sam" or "parser".
        """
        return {
            "clip": self.clip_weights,
            "sam": self.sam_checkpoint,
            "parser": Path(self.spacy_model),
        }[model]

    def missing(self, models: Sequence[str] = ("clip", "sam")) -> str:
        """Say on one line which models are not there and which command fetches them; "" if none.

        Args:
            models: those of "clip", "sam" and "parser" that are needed.
        """
        absent = [model for model in models if not self._is_there(model)]
        if not absent:
            return ""
        files = [self.path(model) for model in absent if model != "parser"]
        expected = [f"weights at {' and '.join(map(str, files))}"] if files else []
        expected += [f"a spaCy pipeline {self.spacy_model!r}"] if "parser" in absent else []
        got = "no such file" if len(absent) == len(files) == 1 else "none"
        return f"Expected {' and '.join(expected)}, got {got}; {self._fix(absent, files)}."

    def _fix(self, absent: Sequence[str], files: Sequence[Path]) -> str:
        """Word how to get models that are not there."""
        items = [self._item(model) for model in absent]
        if not all(items):
            if files:
                return "check the path"
            return (
                f"install it with `python -m spacy download {self.spacy_model}`, or name another "
                f"with --spacy_model"
            )
        fetched = [item for item in items if item]
        named = "paper" if set(fetched) <= set(PAPER) else " ".join(fetched)
        elsewhere = [
            path.parent for path in files if path.parent.absolute() != weights_folder().absolute()
        ]
        folder = f" --weights_folder {shlex.quote(str(elsewhere[0]))}" if elsewhere else ""
        return f"run `hybridgl download {named}{folder}`"

    def _is_there(self, model: str) -> bool:
        if model != "parser":
            return self.path(model).is_file()
        if Path(self.spacy_model).is_dir():
            return True
        try:
            distribution(self.spacy_model)
        except (PackageNotFoundError, ValueError):
            return False
        return True

    def _item(self, model: str) -> str | None:
        """Return what ``hybridgl download`` calls a model; None where it has none."""
        if model == "parser":
            return "spacy" if self.spacy_model == SPACY_MODEL else None
        published = _published(self.path(model))
        return published.item if published else None

    @timer("hash model files")
    def sha256(self, model: str) -> str:
        """Return the sha256 of a model's file, or one of all files of the parser's pipeline.

        Raises:
            WeightsError: no such pipeline.
            OSError: the file cannot be read.
        """
        return file_sha256(self.path(model)) if model != "parser" else self._pipeline_sha256()

    def warnings(self, *models: str) -> list[str]:
        """Return one line for every file that has a published one's name, but not its content.

        Args:
            models: those of "clip" and "sam" to look at.
        """
        lines = []
        for model in models:
            path, published = self.path(model), _published(self.path(model))
            if published and not self.sha256(model).startswith(published.sha256):
                lines.append(
                    f"Expected the sha256 of {path} to start with {published.sha256[:12]}, got "
                    f"{self.sha256(model)[:12]}, which is damaged or not the published weights; "
                    f"{_fetch(published, path)}."
                )
        return lines

    def clip_warnings(self) -> list[str]:
        """Return one line for every way in which CLIP may be computed otherwise than trained."""
        path, lines = self.clip_weights, []
        if not (self.clip_activation or known_activation(path)):
            lines.append(
                f"Expected a CLIP of known activation, got {path}, which is computed with "
                f"QuickGELU, OpenAI's; say --clip_activation quickgelu, or gelu for weights that "
                f"were trained with it, as LAION's, DataComp's and open_clip's own are."
            )
        if any(re.search(_OTHER_STATISTICS, name) for name in _names(path)):
            lines.append(
                f"Expected a CLIP trained on images with OpenAI's mean and standard deviation, got "
                f"{path}, which by its name was trained with 0.5 for both; give another file with "
                f"--clip_weights."
            )
        return lines

    def _pipeline_sha256(self) -> str:
        """Hash what an installer recorded of a package's files, or else a folder's own files."""
        name, folder = self.spacy_model, Path(self.spacy_model)
        try:
            package = distribution(name)
        except (PackageNotFoundError, ValueError) as error:
            parts = {
                file.relative_to(folder).as_posix(): file_sha256(file)
                for file in folder.rglob("*")
                if file.is_file()
            }
            if not parts:
                raise WeightsError(
                    f"Expected a spaCy pipeline {name!r}, got neither a package nor a folder of "
                    f"this name; install one with `python -m spacy download en_core_web_lg`, or "
                    f"name another with --spacy_model."
                ) from error
        else:
            parts = {
                str(file): file.hash.value
                for file in package.files or ()
                if file.hash and file.parts[0] == name and file.suffix != ".pyc"
            } or {name: package.version}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def activation_of(clip_weights: Path, asked: str | None = None) -> str:
    """Return the activation that a CLIP is computed with: QuickGELU where it is not known.

    Args:
        clip_weights: its file.
        asked: the one that was asked for, a key of ``ACTIVATIONS``; None takes what is known.
    """
    return asked or known_activation(clip_weights) or "quickgelu"


def known_activation(clip_weights: Path) -> str | None:
    """Tell what activation a CLIP was trained with, which its tensors do not say.

    Args:
        clip_weights: its file, which need not be there: its name and those of its folders may say.

    Returns:
        A key of ``ACTIVATIONS``; None where it is not known.
    """
    if clip_weights.parent == _BUNDLED or _published(clip_weights):
        return "quickgelu"
    of_file, *of_folders = (
        next((known for part, known in _ACTIVATION_BY_NAME if re.search(part, name)), None)
        for name in _names(clip_weights)
    )
    if of_file is None and is_torchscript(clip_weights):
        return "quickgelu"  # OpenAI's way to publish
    return of_file or next(filter(None, of_folders), None)


def _names(path: Path) -> list[str]:
    """Return the names of a file and the folders above it, nearest first, in lower case."""
    path = path.absolute()
    return [one.name.lower() for one in (path, *path.parents[:_FOLDERS_OF_NAMES])]


def is_torchscript(path: Path) -> bool:
    """Tell TorchScript archives from other files: they hold code beside the tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _version(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return version(package)
    except (PackageNotFoundError, ValueError):
        return None


def _published(path: Path) -> WeightsFile | None:
    known = (*CLIP_FILES.values(), *SAM_FILES.values())
    return next((file for file in known if file.name == path.name), None)


def _fetch(published: WeightsFile, path: Path) -> str:
    """Word how to get a published file to its place."""
    command = f"hybridgl download {published.item}"
    if path.parent.absolute() != weights_folder().absolute():
        command += f" --weights_folder {shlex.quote(str(path.parent))}"
    return f"run `{command}`, or fetch it from {published.url}"


def weights_folder() -> Path:
    """Return where fetched weights lie: $HYBRIDGL_WEIGHTS, or ``~/.cache/hybridgl/weights``."""
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
    clip_activation: str | None = None,
) -> WeightSet:
    """Return the files of a set, each replaced by the argument that names another.

    Args:
        name: "tiny" or "paper".
        clip_model: architecture of CLIP: ViT-B-16, ViT-B-32, ViT-L-14 or RN50.
        clip_weights: CLIP's file.
        sam_type: vit_h, vit_l, vit_b or tiny.
        sam_checkpoint: SAM's file.
        spacy_model: name or folder of a spaCy pipeline.
        clip_activation: of CLIP's blocks; None takes what is known of the file.

    Raises:
        SettingError: no set, architecture or type has this name.
    """
    for what, choice, known in (
        ("weights", name, ("tiny", "paper")),
        ("a CLIP model", clip_model, (None, *CLIP_FILES)),
        ("a SAM type", sam_type, (None, *SAM_FILES, "tiny")),
    ):
        if choice not in known:
            names = ", ".join(filter(None, known))
            raise SettingError(
                f"Expected {what} among {names}, got {choice!r}; choose one of them."
            )
    tiny = name == "tiny"
    folder = weights_folder()
    if clip_model is None and not tiny and clip_weights is None:
        clip_model = "ViT-B-16"
    if clip_weights is None:
        clip_weights = folder / CLIP_FILES[clip_model].name if clip_model else _BUNDLED / "clip.npz"
    if sam_type is None:
        sam_type = "tiny" if tiny else "vit_h"
    if sam_checkpoint is None:
        bundled = sam_type == "tiny"
        sam_checkpoint = _BUNDLED / "sam.npz" if bundled else folder / SAM_FILES[sam_type].name
    if spacy_model is None:
        spacy_model = str(_BUNDLED / "spacy") if tiny else SPACY_MODEL
    return WeightSet(
        clip_weights=clip_weights,
        clip_model=clip_model,
        sam_checkpoint=sam_checkpoint,
        sam_type=sam_type,
        spacy_model=spacy_model,
        clip_activation=clip_activation,
    )
