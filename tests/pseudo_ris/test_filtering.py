"""Which captions are kept; the released loader's choices are golden vectors."""

from __future__ import annotations

import pytest

from hybridgl.config import Profile
from pseudo_ris.config import PseudoQuirks
from pseudo_ris.filtering import CaptionFilter, Pool, caption_pool

REFERENCE, CORRECTED = (PseudoQuirks.of(profile) for profile in Profile)
DISTINCTIVE = CaptionFilter.DISTINCTIVE


@pytest.mark.parametrize("quirks", [REFERENCE, CORRECTED])
def test_kept_captions_exceed_the_threshold(quirks):
    scores = [0.5, 1.0, 1.5, 2.0]
    assert caption_pool(scores, DISTINCTIVE, 1, quirks, single_mask=False) == Pool((2, 3))
    assert caption_pool(scores, DISTINCTIVE, 1.5, quirks, single_mask=False) == Pool((3,))
    assert caption_pool(scores, CaptionFilter.ALL, 1, quirks, single_mask=False) == Pool(
        (0, 1, 2, 3)
    )


@pytest.mark.parametrize("quirks", [REFERENCE, CORRECTED])
def test_better_half_of_a_single_mask_is_kept(quirks):
    assert caption_pool([1, 4, 2, 3, 0], DISTINCTIVE, 9, quirks, single_mask=True) == Pool((1, 3))


def test_all_stand_in_for_none_by_quirk_p28():
    pools = [
        caption_pool([0.1, 0.2], DISTINCTIVE, 1, quirks, single_mask=False)
        for quirks in (REFERENCE, CORRECTED)
    ]
    assert pools == [Pool((0, 1), passed=False), Pool((), passed=False)]


def test_first_sample_passes_for_the_beams_by_quirk_p29():
    pools = [
        caption_pool([0.0] * 44, CaptionFilter.BEAM, 1, quirks, single_mask=False).indices
        for quirks in (REFERENCE, CORRECTED)
    ]
    assert pools == [(1, 12, 23, 34), (0, 11, 22, 33)]
