"""Matching of masks from two sources; the released program's indices are golden vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hybridgl.config import Profile
from pseudo_ris.config import PseudoQuirks
from pseudo_ris.masks import match_masks

REFERENCE, CORRECTED = (PseudoQuirks.of(profile) for profile in Profile)


def row(*pixels):
    """A mask of an image of one row of eight pixels."""
    mask_HW = np.zeros((1, 8), dtype=bool)
    mask_HW[0, list(pixels)] = True
    return mask_HW


FOUND = np.stack([row(0, 1), row(0), row(7)])
DRAWN = np.stack([row(*range(7)), row(0, 1, 2), row(0)])


def test_largest_overlap_wins_also_where_it_is_nothing_by_quirk_p3():
    assert match_masks(FOUND, DRAWN, REFERENCE).tolist() == [0, 0, 0]
    assert match_masks(FOUND, DRAWN, replace(REFERENCE, matching_by_overlap=False)).tolist() == [
        1,
        2,
    ]


def test_a_drawn_mask_is_taken_once_but_for_quirk_p4():
    twice = np.stack([FOUND[0], FOUND[0], FOUND[1]])
    assert match_masks(twice, DRAWN, CORRECTED).tolist() == [1, 2]
    repeated = replace(CORRECTED, sam_masks_repeat=True)
    assert match_masks(twice, DRAWN, repeated).tolist() == [1, 1, 2]


@pytest.mark.parametrize("quirks", [REFERENCE, CORRECTED])
def test_nothing_is_matched_where_one_source_has_nothing(quirks):
    assert match_masks(FOUND, DRAWN[:0], quirks).tolist() == []
    assert match_masks(FOUND[:0], DRAWN, quirks).tolist() == []
