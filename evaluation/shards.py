"""A split divided among several runs, and their results put together again.

A shard takes every n-th image. Its file holds the records of its sentences under every k_limit that
quirk Q5 may turn out to set, and the proposal counts of its images; when all n files are there, the
k_limits follow from the counts, and the records are those of a run in one piece.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from evaluation.evaluate import SampleId, VariantsByCap
from evaluation.records import Record
from hybridgl.errors import HybridGLError
from hybridgl.files import atomic_write_bytes, sweep_partials
from refer.dataset import ReferSplit

__all__ = [
    "Shard",
    "add_shard_argument",
    "check_other_shards",
    "merge_shards",
    "missing_shards",
    "write_shard",
]


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of n.

    Attributes:
        index: 1 to n.
        total: n.
    """

    index: int
    total: int

    def __str__(self) -> str:
        return f"shard {self.index}/{self.total}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Shard of a text such as "2/8".

        Raises:
            HybridGLError: another text, or an index that is not 1 to n.
        """
        match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise HybridGLError(
                f"Expected --shard i/n with i from 1 to n, such as 2/8, and n below 10,000, got "
                f"{text[:40]!r}."
            )
        return cls(int(match[1]), int(match[2]))

    def image_ids(self, split: ReferSplit) -> list[int]:
        """The shard's images: every n-th, so that shards take about the same time."""
        return list(split.images)[self.index - 1 :: self.total]

    def path(self, output: Path) -> Path:
        """The shard's file in a run's folder."""
        return output / "shards" / f"{self.index}-of-{self.total}.jsonl"

    def all(self) -> list[Shard]:
        """This shard and the others."""
        return [Shard(index, self.total) for index in range(1, self.total + 1)]


def add_shard_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--shard``, a ``Shard`` or None."""
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="i/n",
        help="every n-th image only, from the i-th on; the run that completes the n shards of an "
        "output folder puts them together",
    )


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except HybridGLError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def write_shard(
    shard: Shard,
    output: Path,
    settings: Mapping[str, Any],
    image_errors: Mapping[str, Any],
    counts: Mapping[int, int],
    variants: Mapping[SampleId, VariantsByCap],
) -> None:
    """Write a shard's file, atomically.

    Args:
        shard: which one.
        output: folder of the run.
        settings: of the run, the same for all its shards.
        image_errors: images that were missing, damaged or of another size.
        counts: proposals of the shard's images.
        variants: records of its samples, by k_limit.
    """
    lines: list[str] = []
    for of_cap in variants.values():
        # Most k_limits give the same record: each distinct one is written once, with its k_limits.
        caps_of: dict[str, list[int]] = {}
        for k_limit, record in of_cap.items():
            caps_of.setdefault(json.dumps(msgspec.to_builtins(record)), []).append(k_limit)
        lines += [
            f'{{"k_limits": {k_limits}, "record": {record}}}'
            for record, k_limits in caps_of.items()
        ]
    header = {
        "shard": asdict(shard),
        "settings": settings,
        "image_errors": image_errors,
        "counts": list(counts.items()),
    }
    lines.insert(0, json.dumps(header, allow_nan=False))
    content = "".join(f"{line}\n" for line in lines).encode("ascii")
    path = shard.path(output)
    sweep_partials(path.parent)
    checksum = hashlib.sha256(content).hexdigest().encode("ascii")
    atomic_write_bytes(path, checksum + b"\n" + content)


def missing_shards(shard: Shard, output: Path) -> list[Shard]:
    """The shards of a run whose files are not there yet."""
    return [other for other in shard.all() if not other.path(output).is_file()]


def check_other_shards(
    shard: Shard, output: Path, settings: Mapping[str, Any], image_errors: Mapping[str, Any]
) -> None:
    """Refuse, before any work, a folder whose other shards this one could not be merged with.

    Raises:
        HybridGLError: a file is damaged or was made with other settings or image_errors.
    """
    for other in shard.all():
        if other != shard and other.path(output).is_file():
            _read(other.path(output), {"settings": settings, "image_errors": image_errors})


def merge_shards(
    shard: Shard,
    output: Path,
    settings: Mapping[str, Any],
    image_errors: Mapping[str, Any],
    split: ReferSplit,
) -> tuple[dict[int, int], dict[SampleId, VariantsByCap]]:
    """Put the files of all shards of a run together.

    Args:
        shard: any of them.
        output: folder of the run.
        settings: that all of them must have been made with.
        image_errors: of the images, likewise: an image that one machine lacks counts as 0 there.
        split: the data, every sample of which must be there once.

    Returns:
        Proposals of every image; records by sample and k_limit.

    Raises:
        HybridGLError: a file is damaged or of other settings, a sample is in two files, or in none.
    """
    variants: dict[SampleId, VariantsByCap] = {}
    counts: dict[int, int] = {}
    origin: dict[SampleId, Path] = {}
    for one in shard.all():
        path = one.path(output)
        shard_counts, shard_variants = _read(
            path, {"settings": settings, "image_errors": image_errors}
        )
        for sample in shard_variants:
            if sample in variants:
                raise HybridGLError(
                    f"Expected every sentence in one shard, found ref {sample[0]}, sentence "
                    f"{sample[1]} in {origin[sample]} and in {path}. Delete one and make it again."
                )
            origin[sample] = path
        variants |= shard_variants
        counts |= shard_counts
    _require_whole(variants, counts, split, shard.path(output).parent)
    return counts, variants


def _read(
    path: Path, expected: Mapping[str, Any]
) -> tuple[dict[int, int], dict[SampleId, VariantsByCap]]:
    checksum, _, content = path.read_bytes().partition(b"\n")
    if checksum != hashlib.sha256(content).hexdigest().encode("ascii"):
        raise HybridGLError(
            f"Expected the results of a shard in {path}, but the file is damaged (its checksum "
            f"does not match). Delete it and run that shard again."
        )
    head, *lines = content.decode("ascii").splitlines()
    header = json.loads(head)
    wanted = json.loads(json.dumps(expected))
    others = [name for name in wanted if header.get(name) != wanted[name]]
    if others:
        what = "settings" if "settings" in others else "images missing, damaged or of other size"
        raise HybridGLError(
            f"Expected shards of one run, but {path} was made with other {what}. Delete it and "
            f"run that shard again, or give another --output DIR."
        )
    variants: dict[SampleId, VariantsByCap] = {}
    for line in lines:
        row = json.loads(line)
        record = msgspec.convert(row["record"], Record)
        of_cap = variants.setdefault((record.ref_id, record.sent_id), {})
        of_cap |= dict.fromkeys(row["k_limits"], record)
    return dict(header["counts"]), variants


def _require_whole(
    variants: Mapping[SampleId, VariantsByCap],
    counts: Mapping[int, int],
    split: ReferSplit,
    folder: Path,
) -> None:
    expected: Sequence[SampleId] = [
        (ref.ref_id, sentence.sent_id) for ref in split.refs for sentence in ref.sentences
    ]
    gaps = [sample for sample in expected if sample not in variants]
    strangers = set(variants) - set(expected)
    images = [image_id for image_id in split.images if image_id not in counts]
    if gaps or strangers or images:
        first = f", the first of them ref {gaps[0][0]}, sentence {gaps[0][1]}" if gaps else ""
        raise HybridGLError(
            f"Expected the {len(expected)} sentences and {len(split.images)} images of the split "
            f"in the shards of {folder}; {len(gaps)} sentences are missing{first}, "
            f"{len(strangers)} are not of the split, {len(images)} images are missing. Run all "
            f"shards again with the same data."
        )
