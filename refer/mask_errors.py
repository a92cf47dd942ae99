"""Masks of a split that are broken, or written in another form than their format's.

An evaluation that met them at its end would have worked for nothing. So they are looked for before
work starts, without drawing anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hybridgl.errors import DataError
from refer.dataset import Id, ReferSplit
from refer.entries import first_few

__all__ = ["without_broken_masks"]


def without_broken_masks(
    split: ReferSplit, ann_ids: Iterable[Id], *, strict: bool = False
) -> ReferSplit:
    """Check masks, and empty those that cannot be drawn.

    Args:
        split: of the masks.
        ann_ids: whose masks are checked.
        strict: refuse the first that is broken, or of another form than its format's.

    Returns:
        The split, in which annotations with a broken mask have none, with a line about these, and
        one about masks of another form, among its warnings.

    Raises:
        DataError: one is refused, and ``strict``.
    """
    broken: dict[Id, DataError] = {}
    other_form: dict[Id, DataError] = {}
    for ann_id in ann_ids:
        try:
            found = split.check_mask(ann_id)
        except DataError as error:
            broken[ann_id] = found = error
        else:
            if found:
                other_form[ann_id] = found
        if found and strict:
            raise found
    if not broken and not other_form:
        return split
    warnings = [
        f"{len(found)} annotations of {split.dataset} {split.split} have {what}: "
        f"{first_few(found)}; the first: {next(iter(found.values()))}"
        for what, found in (
            ("a broken mask, and count as without one", broken),
            ("a mask in another form, which is read", other_form),
        )
        if found
    ]
    emptied = {one: replace(split.annotations[one], segmentation=None) for one in broken}
    return replace(
        split,
        annotations={**split.annotations, **emptied},
        lenient=True,
        warnings=(*split.warnings, *warnings),
    )
