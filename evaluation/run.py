"""A run as a whole: what its settings make of it, its folder, and what it leaves there."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import torch

from evaluation.evaluate import Evaluation, Made
from evaluation.executors import Executor, serial
from evaluation.manifest import Manifest, find_manifest, other_devices, write_manifest
from evaluation.origin import Origin
from evaluation.predicted_masks import write_predicted_masks
from evaluation.proposals import (
    FileSource,
    GroundTruthSource,
    NoSource,
    ProposalSource,
    SamSource,
)
from evaluation.published import parser_notes
from evaluation.records import (
    Record,
    read_records,
    read_summary,
    write_records,
    write_summary,
)
from evaluation.report import Report, ReportContext
from evaluation.samples import draw_samples, drawn_figures
from evaluation.shards import Shard
from hybridgl.config import (
    KNOWS_SHAPES_ONLY,
    SHAPES,
    HybridGLConfig,
    MethodConfig,
    ModelConfig,
    ProfileConfig,
    ReferenceQuirks,
)
from hybridgl.devices import BatchSizes, select_device, set_tf32
from hybridgl.errors import DataError, HybridGLError, SettingError
from hybridgl.files import atomic_write_bytes, check_folder, file_sha256
from hybridgl.methods import Method
from hybridgl.metrics import PROTOCOLS
from hybridgl.models import Models
from hybridgl.program import progress
from hybridgl.settings import Settings, add_arguments, setting, setting_names
from hybridgl.store import Store
from hybridgl.weights.registry import Parser
from refer.config import SplitConfig, load_split
from refer.dataset import Id, ReferSplit
from refer.entries import first_few
from refer.splits import DATASETS
from utils.runtime import Stopwatch, peak_memory_bytes

__all__ = [
    "ChoiceConfig",
    "Methods",
    "OutputConfig",
    "Run",
    "RunConfig",
    "StoreConfig",
    "add_run_arguments",
]

_logger = logging.getLogger(__name__)

Methods = Mapping[str, type[Method]]
"""The methods that a program knows, by their names."""

_COCO = "coco:"

_SUMMARY = "summary.json"
_RECORDS = "records.jsonl"
_MASKS = "masks.json"
_FIGURES = "figures"

_MADE = (
    "origin",
    "store",
    "seconds",
    "peak_memory_bytes",
    "threads",
    "batch_sizes",
    "parsers",
    "masks_sha256",
)
"""Of a summary, what tells how its records were made: it stays when they are scored again."""

_SAID_ELSEWHERE = (
    *("proposals", "fusion_mode", "dtype"),
    *("dataset", "refer_data_root", "image_root"),
)
"""Settings that a report names in another way, or that say only where data lie."""

_PACKAGES = ("hybridgl", "torch", "torchvision", "open_clip_torch", "segment-anything", "spacy")


def _proposals(text: str) -> str:
    """Accept a source of proposals."""
    if text not in ("sam", "gt") and not text.startswith(_COCO):
        raise SettingError(f"Expected sam, coco:FILE or gt, got {text!r}; choose one of them.")
    return text


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceConfig(ProfileConfig):
    """What a run compares."""

    method: str = setting("hybridgl", help="the method")
    proposals: str = setting(
        "sam",
        parse=_proposals,
        metavar="{sam,coco:FILE,gt}",
        help="masks to choose from: SAM's, those of a COCO-results or COCO-annotation file, or the "
        "annotated objects of the image",
    )
    protocol: str = setting(
        "zero-shot",
        aliases=("--convention",),
        choices=tuple(PROTOCOLS),
        help="evaluation protocol: how the scores are computed, see docs/protocols.md",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreConfig(Settings):
    """Where the results of stages are kept, and which part of a split is worked on."""

    store: Path = setting(Path("store"), metavar="DIR", help="where the results of stages are kept")
    overwrite: bool = setting(False, help="make again what the store or output holds")
    shard: Shard | None = setting(
        None,
        parse=Shard.parse,
        metavar="i/n",
        help="work on every n-th image only, from the i-th on, and leave the results in the store; "
        "the run without --shard then writes records from what the shards have stored",
    )

    def open(self, *, keep_tokens: bool = False) -> Store:
        """Open the store.

        Raises:
            OSError: its path is a file, or cannot be written.
        """
        check_folder(self.store, "--store")
        store = Store(self.store, overwrite=self.overwrite, keep_tokens=keep_tokens)
        for line in store.warnings():
            _warn_once(line)
        return store


@functools.cache
def _warn_once(line: str) -> None:
    """Log what every run of a process would say again."""
    _logger.warning(line)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig(StoreConfig):
    """Where results are kept and written."""

    keep_tokens: bool = setting(
        False,
        help="store what enters CLIP's masked blocks too (1.2 MB a mask), so that another "
        "--fusion_mode takes a fraction of the time",
    )
    save_masks: bool = setting(
        False,
        help="write the predicted masks as COCO results, masks.json, which --proposals coco:FILE "
        "reads",
    )
    output: Path | None = setting(
        None,
        metavar="DIR",
        help="where records, summary and figures go (default: a folder in runs/ that is named "
        "after dataset, split, mode, profile and whatever else differs from the defaults)",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Every setting of a run, with all defaults filled in.

    Attributes:
        data: which split.
        choice: what is compared.
        method: settings of the method.
        models: which models, and how they run.
        storage: where results are kept.
        changed: what differs from the defaults of this split, method and profile, as JSON values;
            without what says only where results go, or how scores are computed.
    """

    data: SplitConfig
    choice: ChoiceConfig
    method: MethodConfig
    models: ModelConfig
    storage: OutputConfig
    changed: Mapping[str, Any]

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, methods: Methods) -> Self:
        """Build the settings from the arguments of ``add_run_arguments``.

        Raises:
            SettingError: a value is out of its range, or of a setting that the method lacks.
            DataError: a wrong name of a split, or a custom dataset that cannot be used.
            FileNotFoundError: a custom dataset that is not there.
        """
        choice = ChoiceConfig.from_arguments(arguments)
        kind = methods[choice.method]
        given = {"quirks": ReferenceQuirks.of(choice.profile)}
        _check_read(arguments, choice.method, methods)
        given_data = SplitConfig.from_arguments(arguments)
        data = given_data.resolved()
        method = kind.Config.from_arguments(arguments, **given).resolved(data.name)
        chosen = ModelConfig.from_arguments(arguments)
        models, usual_models, of_weights = (
            one.resolved(data.dataset, published_clip=kind.Config.published_clip)
            for one in (chosen, ModelConfig(), ModelConfig(weights=chosen.weights))
        )
        custom = {} if data.dataset in DATASETS else {"dataset": str(Path(data.dataset).resolve())}
        root = data.refer_data_root
        changed = {
            **custom,
            **({} if root == SplitConfig().refer_data_root else {"refer_data_root": str(root)}),
            **({} if data.limit is None else {"limit": data.limit}),
            **({"image_root": [*map(str, data.image_root)]} if data.image_root else {}),
            **({"apply_exif": True} if data.apply_exif else {}),
            **({} if choice.proposals == "sam" else {"proposals": choice.proposals}),
            **method.changed(kind.Config(**given).resolved(data.name)),
            **({} if models.weights == usual_models.weights else {"weights": models.weights}),
            **models.changed(of_weights),
        }
        if select_device(models.device).type == select_device("auto").type:
            changed.pop("device", None)
        changed.pop("threads", None)  # how, not what
        return cls(
            data=data,
            choice=choice,
            method=method,
            models=models,
            storage=OutputConfig.from_arguments(arguments),
            changed=changed,
        )

    @property
    def mode(self) -> str:
        """What names the method's setting in folders and reports."""
        if isinstance(self.method, HybridGLConfig):
            return str(self.method.fusion.fusion_mode.value)
        return self.choice.method

    @property
    def folder(self) -> Path:
        """Where the results go: the one asked for, or one that no other settings have."""
        if self.storage.output is not None:
            return self.storage.output
        parts = [self.data.label, self.mode, self.choice.profile.value]
        changed = {name: value for name, value in self.changed.items() if name != "fusion_mode"}
        if changed:
            text = json.dumps(changed, sort_keys=True)
            parts.append(hashlib.sha256(text.encode()).hexdigest()[:8])
        return Path("runs") / "-".join(parts)


def add_run_arguments(parser: argparse.ArgumentParser, methods: Methods) -> None:
    """Add the arguments that ``RunConfig.from_arguments`` reads.

    Args:
        parser: gets them.
        methods: to choose from.
    """
    add_arguments(parser, "data", SplitConfig)
    add_arguments(parser, "run", ChoiceConfig, choices={"method": list(methods)})
    add_arguments(parser, "method", *(kind.Config for kind in methods.values()))
    add_arguments(parser, "models", ModelConfig)
    add_arguments(parser, "store", OutputConfig)


def _check_read(arguments: argparse.Namespace, chosen: str, methods: Methods) -> None:
    """Refuse a setting that the method does not read: a run with it would show no effect."""
    read = setting_names(methods[chosen].Config)
    changed = {
        name: value
        for kind in methods.values()
        for name, value in kind.Config.from_arguments(arguments).changed().items()
    }
    unread = sorted(set(changed) - read)
    if unread:
        named = ", ".join(f"--{name}" for name in unread)
        raise SettingError(
            f"Expected settings of the method {chosen}, got {named}, which it does not have; leave "
            f"them out, or choose another --method."
        )


class Run:
    """A run, ready to start; nothing is computed or written before ``execute``.

    Args:
        config: every setting.
        methods: that the program knows.
        split: the data, where it has been read for these settings before.

    Attributes:
        settings: everything that decides the records, as JSON values.
        warnings: what speaks against taking its scores as they are: one line each.

    Raises:
        SettingError: a wrong value.
        WeightsError: a model that is missing or wrong.
        DataError: data that cannot be used.
        OSError: a file or folder that cannot be used.
    """

    def __init__(
        self, config: RunConfig, methods: Methods, split: ReferSplit | None = None
    ) -> None:
        self.config = config
        check_folder(config.folder, "--output")
        proposal_file = _proposal_file(config.choice.proposals)
        self.store = config.storage.open(keep_tokens=config.storage.keep_tokens)
        self.models = Models.from_config(config.models)
        set_tf32(enabled=config.models.tf32)
        kind = methods[config.choice.method]
        self.method: Method = kind(self.models, config.method, self.store)
        self.split = load_split(config.data) if split is None else split
        self.source = self._source(proposal_file)
        self._needed = (*self.method.models_needed, *self.source.models)
        self._own_manifest = find_manifest(self.store, self.models, self._needed)
        self.manifest = self._own_manifest
        self.evaluation = self._evaluation(self.manifest)
        self._images_sha256 = self.evaluation.images_sha256()
        self.warnings = [
            *self.split.warnings,
            *self.source.warnings,
            *self.models.warnings(*self._needed),
        ]
        self._use_other_device()

    @property
    def _is_beyond_the_weights(self) -> bool:
        """Tell whether weights that know shapes only are to find other things."""
        return self.config.models.weights == SHAPES and self.split.dataset != "shapes"

    def _source(self, proposal_file: Path | None) -> ProposalSource:
        """Return the source of proposals that the settings name."""
        if not self.method.needs_proposals:
            return NoSource()
        if proposal_file is not None:
            return FileSource(proposal_file, self.split, strict=self.config.data.strict)
        if self.config.choice.proposals == "gt":
            dropped = self.config.method.quirks.overlapping_polygons_dropped
            return GroundTruthSource(
                self.split,
                overlapping_polygons_dropped=dropped,
                strict=self.config.data.strict,
            )
        return SamSource(self.models, self.config.models.proposals, self.store)

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.config.folder

    @property
    def notes(self) -> list[str]:
        """What else should be known of the run: one line each."""
        device = self.manifest.device
        elsewhere = device != self._own_manifest.device
        return [
            *self.models.notes(*self._needed),
            *([f"All images were scored on another device: {device}."] if elsewhere else []),
            *([KNOWS_SHAPES_ONLY] if self._is_beyond_the_weights else []),
        ]

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the records, as JSON values."""
        return self._settings(self.manifest)

    def _settings(self, manifest: Manifest) -> dict[str, Any]:
        split = self.split
        settings = {
            "dataset": split.dataset,
            "split": split.split,
            "split_by": split.split_by,
            "limit": self.config.data.limit,
            **({"apply_exif": True} if self.config.data.apply_exif else {}),
            "data": split.sha256_by_file,
            **({"lenient": True} if split.lenient else {}),
            "profile": self.config.choice.profile.value,
            "method": self.method.settings(),
            "proposals": self.source.settings(),
            "models": {"names": manifest.names, **manifest.made_by()},
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    def finished_records(self) -> list[Record] | None:
        """Read the records in the folder; None unless the run would make the very same ones.

        Those of the same models on another kind of device, which has filled the store, count too.
        """
        summary = read_summary(self.folder)
        path = self.folder / _RECORDS
        if summary is None or summary.get("images_sha256") != self._images_sha256:
            return None
        if _sha256(path) != summary.get("records_sha256"):
            return None
        masks_sha256 = summary.get("masks_sha256")
        if self.config.storage.save_masks and not masks_sha256:
            return None
        if masks_sha256 and _sha256(self.folder / _MASKS) != masks_sha256:
            return None
        for manifest in (self.manifest, *other_devices(self.store, self.manifest)):
            if summary["settings"] == self._settings(manifest):
                self._use(manifest)
                return read_records(path)
        return None

    def execute(self, executor: Executor[int, int] = serial) -> str:
        """Score what is missing, and write records, report, summary and figures.

        With ``--shard``, only score the shard's images.

        Returns:
            What to print.

        Raises:
            OSError: the folder holds a run of other settings, or cannot be written.
        """
        storage = self.config.storage
        if not (storage.overwrite or storage.shard):
            finished = self.finished_records()
            if finished is not None:
                return self._rescored(finished)
        self.check_folder_settings()
        watch, origin = Stopwatch(), Origin.now(self.models.device)
        if storage.shard and storage.overwrite:
            # Otherwise the run without --shard would give back what it had made before.
            (self.folder / _SUMMARY).unlink(missing_ok=True)
        with watch.measure("scores"):
            self._score(executor)
        if storage.shard:
            return (
                f"shard {storage.shard} is in {self.store.root}/. When all are, run without "
                f"--shard to write records, with this store or a copy of all shards' stores over "
                f"each other."
            )
        with watch.measure("records"):
            made = list(
                progress(
                    self.evaluation.records(), "records", "sentence", total=self.split.num_sentences
                )
            )
        return self._write(made, watch, origin)

    def _score(self, executor: Executor[int, int]) -> None:
        shard = self.config.storage.shard
        asked = shard.of(self.split.images) if shard else None
        missing = self.evaluation.missing(asked)
        if not self.evaluation.any_readable(missing):
            return
        self.method.load()
        for place, _ in enumerate(
            progress(
                self.evaluation.score_images(missing, executor),
                "images",
                "image",
                total=len(missing),
            )
        ):
            if not place:  # not before: a wrong file of a model is found by now
                write_manifest(self.store, self.manifest)

    def _use_other_device(self) -> None:
        """Take what another kind of device has made, if that is all there is to make."""
        storage = self.config.storage
        own = self.evaluation.missing()
        if storage.shard or storage.overwrite or not self.evaluation.any_readable(own):
            return
        total = len(self.split.images) - len(self.split.image_errors.unreadable)
        for manifest in other_devices(self.store, self.manifest):
            left = self._evaluation(manifest).missing()
            if not self.evaluation.any_readable(left):
                self._use(manifest)
                return
            if len(left) < min(len(own), total):
                _logger.warning(
                    "%s holds scores of %d of %d images that were made on %s; on %s all are made "
                    "again.",
                    self.store.root,
                    total - len(left),
                    total,
                    manifest.device,
                    self.manifest.device,
                )

    def _use(self, manifest: Manifest) -> None:
        """Take the results that a manifest names."""
        if manifest == self.manifest:
            return
        if isinstance(self.source, SamSource):
            proposals = self.config.models.proposals
            self.source = SamSource(self.models, proposals, self.store, device=manifest.device)
        self.evaluation = self._evaluation(manifest)
        self.manifest = manifest

    def _evaluation(self, manifest: Manifest) -> Evaluation:
        quirks = self.config.method.quirks
        return Evaluation(
            self.method,
            self.source,
            self.split,
            self.store,
            manifest.made_by(),
            overlapping_polygons_dropped=quirks.overlapping_polygons_dropped,
            top_k_shrinks_across_images=quirks.top_k_shrinks_across_images,
            may_score=manifest == self._own_manifest,
        )

    def check_folder_settings(self) -> None:
        """Refuse a folder that holds a run of other settings.

        Raises:
            OSError: it does, and is not to be overwritten.
        """
        summary = read_summary(self.folder)
        if self.config.storage.overwrite or summary is None:
            return
        found, wanted = summary["settings"], self.settings
        names = sorted({*wanted, *found})
        others = [name for name in names if found.get(name) != wanted.get(name)]
        if others:
            raise FileExistsError(
                f"Expected an empty folder or a run of the same settings in {self.folder}, got a "
                f"run with other {', '.join(others)}; give another --output DIR, or --overwrite."
            )

    def _write(self, made: Sequence[Made], watch: Stopwatch, origin: Origin) -> str:
        """Write records, masks, figures, report and summary; returns what to print."""
        # The summary, written last, vouches for all else here; an earlier run's no longer does.
        (self.folder / _SUMMARY).unlink(missing_ok=True)
        (self.folder / _MASKS).unlink(missing_ok=True)
        records = [record for record, _ in made]
        write_records(self.folder / _RECORDS, records)
        if self.config.storage.save_masks:
            with watch.measure("masks"):
                write_predicted_masks(self.folder / _MASKS, self.evaluation, made)
        found, missed = dict(self.store.hits), dict(self.store.misses)
        how = {
            "origin": origin.json(),
            "store": {"found": found, "made": missed},
            "seconds": dict(watch.seconds),
            "peak_memory_bytes": peak_memory_bytes(),
            "threads": torch.get_num_threads(),
            "batch_sizes": self.evaluation.batch_sizes_json(),
            "masks_sha256": _sha256(self.folder / _MASKS),
            "parsers": self.evaluation.parsers_json(),
        }
        try:
            draw_samples(self.evaluation, made, self.folder / _FIGURES)
        except (HybridGLError, OSError) as error:
            _logger.warning("The figures could not be drawn: %s", error)
        text = self._write_scores(records, how)
        masks = ", masks" if self.config.storage.save_masks else ""
        return "\n".join(
            [
                text,
                f"in {self.store.root}/: found {found}, made {missed}",
                f"records, summary, report with all breakdowns, figures{masks}: {self.folder}",
            ]
        )

    def _rescored(self, records: Sequence[Record]) -> str:
        """Write report and summary again from an earlier run's records; returns what to print."""
        summary = read_summary(self.folder) or {}
        made = {name: summary.get(name) for name in _MADE}
        text = self._write_scores(records, made)
        return f"{text}\nthe records were there, and are scored again: {self.folder}"

    def _write_scores(self, records: Sequence[Record], made: Mapping[str, Any]) -> str:
        """Write report and summary; returns the report in short."""
        report = self.report(records)
        parsers = [Parser(**one["parser"]) for one in made["parsers"] or []]
        warnings = [*self.warnings, *self._unreadable(records)]
        origin = Origin(**made["origin"]) if made["origin"] else None
        figures = drawn_figures(self.folder / _FIGURES)
        context = ReportContext(
            dataset=self.split.dataset,
            split_by=self.split.split_by,
            split=self.split.split,
            method=self.method.name,
            setting=self._setting(),
            counts=self._counts(records, report),
            warnings=tuple(warnings),
            origin=origin.lines() if origin else (),
            figures=[path.relative_to(self.folder).as_posix() for path in figures],
            notes=(
                *self.notes,
                *self._unmeetable(records),
                *parser_notes(self.split.dataset, parsers),
                *_other_batch_sizes(made["batch_sizes"] or []),
            ),
        )
        summary = {
            "settings": self.settings,
            "setting": context.setting,
            "protocol": self.config.choice.protocol,
            "counts": context.counts,
            "image_errors": _image_errors(self.split),
            "images_sha256": self._images_sha256,
            "versions": {name: _version(name) for name in _PACKAGES},
            "clip_activation": self.models.activation if "clip" in self._needed else None,
            "warnings": warnings,
            "notes": list(context.notes),
            **report.json(),
            **made,
            "records_sha256": file_sha256(self.folder / _RECORDS),
        }
        markdown = f"{report.markdown(context)}\n"
        atomic_write_bytes(self.folder / "report.md", markdown.encode())
        write_summary(self.folder / _SUMMARY, summary)
        return report.text(context)

    def report(self, records: Sequence[Record], protocol: str | None = None) -> Report:
        """Score records.

        Args:
            records: of this run.
            protocol: name of the evaluation protocol; None is the run's own.
        """
        return Report.of(
            records,
            PROTOCOLS[protocol or self.config.choice.protocol],
            skips_without_proposals=self.method.skips_without_proposals,
        )

    def _unreadable(self, records: Sequence[Record]) -> list[str]:
        """Return a line on the images that proved corrupt when they were needed."""
        errors = self.split.image_errors
        ids = {record.image_id: None for record in records if record.image_error}
        later = [i for i in ids if i not in errors.unreadable]
        if not later:
            return []
        names = first_few(self.split.images[image_id].file_name for image_id in later)
        reason = self.evaluation.reading_error(later[0])
        return [f"{len(later)} images cannot be decoded: {names}; the first: {reason}"]

    def _without_pixels(self, records: Sequence[Record]) -> list[Id]:
        """Find refs whose ground truth covers no pixel, though it has a mask."""
        empty = dict.fromkeys(record.ref_id for record in records if not record.gt_area)
        without_mask = set(self.split.refs_without_mask)
        return [ref_id for ref_id in empty if ref_id not in without_mask]

    def _unmeetable(self, records: Sequence[Record]) -> list[str]:
        """Return a line on refs that no prediction can meet."""
        ref_ids = self._without_pixels(records)
        if not ref_ids:
            return []
        return [
            f"{len(ref_ids)} of {len(self.split.refs)} refs have a ground truth that covers no "
            f"pixel, thinner than one or dropped by quirk Q9: {first_few(ref_ids)}. No prediction "
            f"can meet it."
        ]

    def _setting(self) -> str:
        """Say what the run was made with, to be held against a published setting."""
        config = self.config
        parts = [
            config.mode,
            f"{config.choice.profile.value} profile",
            *(f"CLIP {name}" for model, name in self.manifest.names.items() if model == "clip"),
            *([f"proposals of {self.source.name}"] if self.method.needs_proposals else []),
            config.models.dtype,
        ]
        parts += [
            f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
            for name, value in config.changed.items()
            if name not in _SAID_ELSEWHERE
        ]
        return ", ".join([*parts, f"protocol {config.choice.protocol}"])

    def _counts(self, records: Sequence[Record], report: Report) -> dict[str, int]:
        split, errors = self.split, self.split.image_errors
        unreadable = {record.image_id for record in records if record.image_error}
        unreadable |= set(errors.unreadable)
        return {
            "refs": len(split.refs),
            "images": len(split.images),
            "sentences": len(records),
            "without_proposals": sum(record.num_proposals == 0 for record in records),
            "left_out": report.left_out,
            "truncated": sum(record.truncated for record in records),
            "images_missing": len(errors.missing),
            "images_corrupt": len(unreadable) - len(errors.missing),
            "images_of_other_size": len(errors.wrong_size),
            "images_turned": len(errors.turned),
            "images_with_orientation": len(errors.tagged),
            "refs_without_mask": len(split.refs_without_mask),
            "refs_without_pixels": len(self._without_pixels(records)),
            "refs_without_sentences": len(split.refs_without_sentences),
        }


def _other_batch_sizes(scored_with: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line on images that were scored with other batch sizes than most were."""
    if len(scored_with) < 2:
        return []
    usual, *others = scored_with
    counted = ", ".join(f"{one['images']} with {BatchSizes(**one['sizes'])}" for one in others)
    return [
        f"{usual['images']} images were scored with {BatchSizes(**usual['sizes'])} at a time, "
        f"{counted}, as memory ran out or other machines took part: last digits may differ."
    ]


def _image_errors(split: ReferSplit) -> dict[str, Any]:
    """Return the images that are not as annotated, as JSON values: records depend on them."""
    errors = split.image_errors
    return {
        "missing": list(errors.missing),
        "corrupt": list(errors.corrupt),
        "wrong_size": [[image_id, *hw] for image_id, hw in errors.wrong_size.items()],
        "turned": list(errors.turned),
        "tagged": list(errors.tagged),
    }


def _sha256(path: Path) -> str | None:
    """Return the sha256 of a file; None where there is none."""
    return file_sha256(path) if path.is_file() else None


def _version(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _proposal_file(proposals: str) -> Path | None:
    """Return the file of masks that the source of proposals names; None where it names none."""
    if not proposals.startswith(_COCO):
        return None
    path = Path(proposals.removeprefix(_COCO))
    if not path.is_file():
        raise DataError(
            f"Expected a JSON file of masks at {str(path)!r}, got no such file; "
            f"third_party/README.md says how to make one."
        )
    return path
