"""Settings that choose a split, shared by every program that reads one."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from hybridgl.errors import DataError, SettingError
from hybridgl.settings import Settings, setting
from hybridgl.timing import timer
from refer.coco import custom_name, load_custom, resolve_split
from refer.dataset import ReferSplit
from refer.image_errors import describe_image_errors, find_image_errors, where_from
from refer.mask_errors import without_broken_masks
from refer.phrasecut import load_phrasecut
from refer.refer import load_refer
from refer.shapes.world import ensure_world
from refer.splits import DATASETS, SPLITS, UNNAMED_SPLIT_BY, default_split_by, validate

__all__ = ["SplitConfig", "load_split"]

DEFAULT_SPLIT = "val"

_logger = logging.getLogger(__name__)


def _dataset(text: str) -> str:
    """Accept a dataset's name, or the path of a custom one."""
    try:
        found = text in DATASETS or Path(text).exists()
    except (OSError, ValueError):  # no path can be so long, or none may be looked up there
        found = False
    if not found:
        raise SettingError(
            f"Expected one of {', '.join(DATASETS)}, or the path of a folder in REFER form or of "
            f"a JSON file in COCO form, got {text!r}, where there is nothing; check the path."
        )
    return text


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig(Settings):
    """Which split of which dataset is read."""

    dataset: str = setting(
        "shapes",
        parse=_dataset,
        metavar="NAME|PATH",
        help=f"{', '.join(DATASETS)}; or the path of a custom dataset, a folder in REFER form or a "
        "JSON file in COCO form, see refer/README.md",
    )
    split: str | None = setting(
        None, help=f"val, testA, ... (default: {DEFAULT_SPLIT}; of a custom dataset the only one)"
    )
    split_by: str | None = setting(
        None,
        aliases=("--splitBy",),
        help="unc, google or umd (default: the first that the dataset has, see refer/README.md)",
    )
    refer_data_root: Path = setting(
        Path("refer/data"),
        aliases=("--data_root",),
        metavar="DIR",
        help="see refer/README.md for what it holds",
    )
    image_root: tuple[Path, ...] = setting(
        (),
        metavar="DIR",
        help="of a custom dataset: a folder in which its images are looked for first; may be given "
        "several times",
    )
    strict: bool = setting(
        False,
        help="refuse broken entries of annotations and proposals, which are otherwise left out and "
        "named, and what is not written as its format has it",
    )
    apply_exif: bool = setting(
        False,
        help="of a custom dataset: turn images as their EXIF tags say, also where their size does "
        "not tell that the annotations are of the turned image",
    )
    limit: int | None = setting(None, low=1, metavar="N", help="the first N images only")

    def resolved(self) -> SplitConfig:
        """Return the settings with the defaults of the dataset filled in.

        Nothing is read, unless it takes a file of a custom dataset to tell what its only split is.

        Raises:
            DataError: a wrong name; or several splits to choose from.
            FileNotFoundError: a path without data.
        """
        if self.dataset in DATASETS:
            split = DEFAULT_SPLIT if self.split is None else self.split
            split_by = validate(self.dataset, split, self.split_by)
        else:
            split, split_by = resolve_split(
                Path(self.dataset), self.split, self.split_by, strict=self.strict
            )
        return dataclasses.replace(self, split=split, split_by=split_by)

    @property
    def name(self) -> str:
        """Name of the dataset, as ``ReferSplit.dataset``."""
        return self.dataset if self.dataset in DATASETS else custom_name(Path(self.dataset))

    @property
    def label(self) -> str:
        """Name for folders; says who drew the splits where that is not the usual way.

        >>> SplitConfig(dataset="refcocog").resolved().label
        'refcocog-val'
        >>> SplitConfig(dataset="refcocog", split_by="google").resolved().label
        'refcocog-google-val'
        """
        known = self.dataset in SPLITS
        usual = default_split_by(self.dataset) if known else UNNAMED_SPLIT_BY
        drawn_by = [] if self.split_by in (None, usual) else [self.split_by]
        return "-".join(filter(None, [self.name, *drawn_by, self.split]))


@timer("read annotations")
def load_split(config: SplitConfig) -> ReferSplit:
    """Load the split that the settings name; the shapes world is made where it is missing.

    A split that lacks refs or images is read all the same, so that a part of the data can be tried:
    ``warnings`` then says what is wrong, and so do the reports; ``image_errors`` holds the images
    that are missing, corrupt or of another size. An object that is referred to and whose mask is
    broken has none.

    Raises:
        DataError: as ``SplitConfig.resolved``; data that cannot be read or has no sentence; or
            anything that is broken, and ``strict``.
        SettingError: a setting of custom datasets with a published one, or no folder as
            ``image_root``.
        FileNotFoundError: a file of the dataset is missing, or all of its images.
    """
    _check_custom(config)
    config = config.resolved()
    split = _load(config)
    whole = len(split.images)
    if config.limit is not None and config.limit < whole:
        split = split.limited(config.limit)
        warning = (
            f"Not the whole of {config.name} {config.split}: the first {config.limit} of {whole} "
            f"images."
        )
        split = replace(split, warnings=(*split.warnings, warning))
    if not split.num_sentences:
        raise DataError(
            f"Expected sentences in {config.name} {config.split}, got {len(split.refs)} refs "
            f"without any; fetch the refs file again, or raise --limit."
        )
    split = _with_masks_checked(split, strict=config.strict)
    apply_exif = None if config.dataset in DATASETS else config.apply_exif
    return _with_image_errors(split, apply_exif)


def _check_custom(config: SplitConfig) -> None:
    """Refuse settings of custom datasets where they mean nothing."""
    if config.dataset in DATASETS and config.apply_exif:
        raise SettingError(
            f"Expected --apply_exif with a custom dataset, got it with {config.dataset}, whose "
            f"annotations are of images as stored; leave it out."
        )
    if config.dataset in DATASETS and config.image_root:
        raise SettingError(
            f"Expected --image_root with a custom dataset, got it with {config.dataset}, whose "
            f"images lie below --refer_data_root; leave it out."
        )
    for root in config.image_root:
        if not root.is_dir():
            raise SettingError(
                f"Expected a folder of images as --image_root, got {root}, where there is none; "
                "check the path."
            )


def _load(config: SplitConfig) -> ReferSplit:
    root, split, strict = config.refer_data_root, config.split or DEFAULT_SPLIT, config.strict
    if config.dataset not in DATASETS:
        return load_custom(
            Path(config.dataset),
            split,
            config.split_by,
            image_roots=config.image_root,
            strict=strict,
        )
    if config.dataset == "phrasecut":
        return load_phrasecut(root, split, check_counts=False, strict=strict)
    if config.dataset == "shapes":
        ensure_world(root)
    return load_refer(
        root, config.dataset, split, config.split_by, check_counts=False, strict=strict
    )


def _with_masks_checked(split: ReferSplit, *, strict: bool) -> ReferSplit:
    """Check the masks of objects that are referred to, and log what is said of them."""
    referred = dict.fromkeys(ann_id for ref in split.refs for ann_id in ref.ann_ids)
    checked = without_broken_masks(split, referred, strict=strict)
    for line in checked.warnings[len(split.warnings) :]:
        _logger.warning(line)
    return checked


def _with_image_errors(split: ReferSplit, apply_exif: bool | None) -> ReferSplit:
    errors = find_image_errors(split, apply_exif=apply_exif)
    unreadable = errors.unreadable
    if len(unreadable) == len(split.images):
        raise FileNotFoundError(
            f"Expected {len(split.images)} images of {split.dataset} {split.split}, got "
            f"{len(errors.missing)} missing and {len(errors.corrupt)} corrupt ones, the first of "
            f"them {split.image_path(unreadable[0])}; {where_from(split)}."
        )
    lines = describe_image_errors(split, errors)
    for line in lines:
        _logger.warning(line)
    return replace(split, image_errors=errors, warnings=(*split.warnings, *lines))
