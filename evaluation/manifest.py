"""Which models, on which kind of device, made what a store holds.

The keys of a run's results hash the content of the models that made them. A machine that lacks a
model's file, or has another kind of device, takes these from a manifest, which whoever fills a
store leaves there: so the second pass runs anywhere, and the first one goes on where a machine with
other packages has begun.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridgl.errors import DataError, WeightsError
from hybridgl.models import Models
from hybridgl.store import Store, entry_key

__all__ = ["Manifest", "find_manifest", "other_devices", "write_manifest"]

_KIND = "manifests"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What decides the results of models, besides the methods' settings.

    Attributes:
        names: of the models' files, by model.
        sha256: of their content, by model.
        numerics: number formats and whether the encoders are compiled, by model.
        device: kind of device: "cpu" or "cuda".
    """

    names: dict[str, str]
    sha256: dict[str, str]
    numerics: dict[str, str]
    device: str

    def made_by(self) -> dict[str, Any]:
        """Return what takes part in the keys of results, as JSON values."""
        return {
            "sha256": self.sha256,
            "numerics": self.numerics,
            "device": self.device,
        }


_FIELDS = dataclasses.fields(Manifest)


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Leave a manifest in the store, unless it is there and whole."""
    meta = {"names": manifest.names, **manifest.made_by()}
    key = entry_key(_KIND, meta)
    if store.load(_KIND, key) is None:
        store.save(_KIND, key, {}, meta)


def find_manifest(store: Store, models: Models, needed: Sequence[str]) -> Manifest:
    """Tell which models a run is made with: those that are here, the others by the store.

    Models whose hashes the store names are assumed to have them: their files are not needed as long
    as nothing has to be computed with them.

    Args:
        store: may hold manifests.
        models: of the run; the device is theirs.
        needed: those of "clip", "sam" and "parser" that take part.

    Raises:
        WeightsError: models are not here, and no manifest names them; all are named.
        DataError: several manifests do, with other content.
    """
    sha256: dict[str, str] = {}
    missing: dict[str, Exception] = {}
    for name in needed:
        try:
            if name != "parser":
                models.require(name)
            sha256[name] = models.sha256(name)
        except (WeightsError, FileNotFoundError) as reason:
            missing[name] = reason
    names = {name: models.name(name) for name in needed}
    known = list(_manifests(store)) if missing else []
    absences: list[str] = []
    for name, absence in missing.items():
        found = {
            manifest.sha256[name]
            for manifest in known
            if manifest.names.get(name) == names[name]
            and all(manifest.sha256.get(other, sha) == sha for other, sha in sha256.items())
        }
        if not found:
            absences.append(str(absence))
            continue
        if len(found) > 1:
            raise DataError(
                f"Expected one {names[name]} in the manifests of {store.root}, got {len(found)} of "
                f"other content; put the file in its place, so that its hash says which."
            )
        (sha256[name],) = found
        models.assume(name, sha256[name])
    if absences:
        # Names every file that is not here, with the command that fetches it.
        models.require(*missing)
        raise WeightsError(" ".join(absences))
    numerics = {name: models.numerics(name) for name in needed if name != "parser"}
    return Manifest(
        names=names,
        sha256={name: sha256[name] for name in needed},
        numerics=numerics,
        device=models.device.type,
    )


def other_devices(store: Store, manifest: Manifest) -> list[Manifest]:
    """Return the same models on those other kinds of device that have filled the store."""
    alike = [
        dataclasses.replace(
            one, names=manifest.names, sha256=manifest.sha256, numerics=manifest.numerics
        )
        for one in _manifests(store)
        if _agrees(one.sha256, manifest.sha256) and _agrees(one.numerics, manifest.numerics)
    ]
    return [one for place, one in enumerate(alike) if one != manifest and one not in alike[:place]]


def _agrees(some: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Tell whether no model has other content, as far as both name it."""
    return all(some.get(name, value) == value for name, value in wanted.items())


def _manifests(store: Store) -> Iterator[Manifest]:
    for key in store.keys(_KIND):
        entry = store.load(_KIND, key)
        if entry is not None:
            # Earlier versions wrote more than a manifest is of today.
            yield Manifest(**{one.name: entry.meta[one.name] for one in _FIELDS})
