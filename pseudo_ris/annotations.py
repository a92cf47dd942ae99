"""Files of pseudo annotations: the released program's, and those that others read.

The released program writes, line by line and appending, JSON, a table, the captions as text and a
summary; here they are written whole or not at all.  Its table has pandas' digits, which come of
reading the JSON with little precision; pandas is an extra.

Source: Pseudo-RIS's released files.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridgl.errors import SettingError
from pseudo_ris.distinctiveness import CaptionScores

__all__ = [
    "CaptionedMask",
    "released_csv",
    "released_lines",
    "released_summary",
    "released_text",
]


@dataclass(frozen=True, slots=True, eq=False)
class CaptionedMask:
    """A mask with everything that was said of it.

    Attributes:
        image_file: name of the image's file.
        image_id: of the image.
        mask_id: number of the mask.
        captions: all of them, in the order of crops and truncations.
        scores: of the captions.
        single: whether the image has no other mask.
    """

    image_file: str
    image_id: int
    mask_id: int
    captions: tuple[str, ...]
    scores: CaptionScores
    single: bool

    def released(self) -> dict[str, Any]:
        """Return the fields of the released program's line."""
        return {
            "img_name": self.image_file,
            "img_id": self.image_id,
            "seg_id": self.mask_id,
            "num_sent": len(self.captions),
            "pseudo_caption": list(self.captions),
            "doc": self.scores.distinctiveness.astype(np.float64).tolist(),
            "one_mask": int(self.single),
        }


def released_lines(masks: Iterable[CaptionedMask]) -> str:
    """Write masks as the released program's JSON lines."""
    return "".join(f"{json.dumps(mask.released())}\n" for mask in masks)


def released_csv(lines: str) -> str:
    """Write the released program's table.

    Args:
        lines: from ``released_lines``.

    Raises:
        SettingError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise SettingError(
            "Expected pandas, which writes the table's digits, got none; run `pip install pandas`, "
            "or leave the table out."
        ) from error
    frame = pandas.read_json(io.StringIO(lines), lines=True)
    table: str = frame.to_csv(index_label="index")
    return table


def released_text(masks: Iterable[CaptionedMask]) -> str:
    """Write the captions as the released program's text."""
    return "".join(
        f"\n\nimage id: {mask.image_id} / seg id: {mask.mask_id}"
        + "".join(f"\n{caption}" for caption in mask.captions)
        for mask in masks
    )


def released_summary(masks: Sequence[CaptionedMask], *, name: str, scorer: str) -> str:
    """Write the released program's summary; of images with several masks alone.

    Args:
        masks: all of them.
        name: of the captions.
        scorer: CLIP that has scored them.
    """
    several = [mask.scores for mask in masks if not mask.single]
    empty = np.zeros(0, dtype=np.float32)
    means, all_scores = [], empty
    for field in ("distinctiveness", "uniqueness", "correctness"):
        values = np.concatenate([getattr(one, field) for one in several] or [empty])
        all_scores = values if field == "distinctiveness" else all_scores
        means.append(float(values.mean()) if len(values) else float("nan"))
    above = int((all_scores > 1).sum())
    share = above / len(all_scores) if len(all_scores) else float("nan")
    return (
        f"Pseudo name: {name} / CLIP model: {scorer}\n"
        "New DoC / Uniqueness / Correctness\n"
        f"{means[0]} / {means[1]} / {means[2]}\n"
        "All count / Over one count / percent\n"
        f"{len(all_scores)} / {above} / {share}\n"
        f"pred masks = 1 case: {sum(mask.single for mask in masks)}\n\n"
    )
