"""Run lengths: lossless, storable as plain arrays, and never silently wrong."""

from __future__ import annotations

import numpy as np
import pytest

from hybridgl.mask_rle import PackedRles, decode_masks, encode_masks, pack_rles, unpack_rles


def _masks(count=5, hw=(7, 11), seed=0):
    return np.random.default_rng(seed).random((count, *hw)) < 0.4


def _counts_by_hand(mask_HW):
    """Uncompressed run lengths, column-major, starting with the zeros."""
    runs, value, length = [], False, 0
    for pixel in mask_HW.T.ravel():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    return [*runs, length]


def _bytes_by_hand(runs):
    """COCO's compression: differences to the run before last, five bits a character."""
    text = bytearray()
    for index, run in enumerate(runs):
        left = run - runs[index - 2] if index > 2 else run
        while True:
            bits, left = left & 0x1F, left >> 5
            more = left != (-1 if bits & 0x10 else 0)
            text.append((bits | 0x20 if more else bits) + 48)
            if not more:
                break
    return bytes(text)


@pytest.mark.parametrize("hw", [(1, 1), (1, 300), (300, 1), (7, 11), (64, 48)])
def test_decoding_gives_the_encoded_masks_back(hw):
    masks = _masks(hw=hw)
    masks[0], masks[1] = False, True

    decoded = decode_masks(encode_masks(masks), hw)

    assert decoded.dtype == np.bool_
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, masks)


def test_encoding_is_that_of_the_format():
    masks = _masks(hw=(40, 50))
    masks[0] = np.indices((40, 50))[1] > 30

    for rle, mask in zip(encode_masks(masks), masks, strict=True):
        assert rle == {"size": [40, 50], "counts": _bytes_by_hand(_counts_by_hand(mask))}


def test_encoding_does_not_depend_on_memory_layout():
    masks = _masks(hw=(6, 8))
    strided = np.zeros((10, 6, 16), dtype=bool)[::2, :, ::2]
    strided[...] = masks

    assert encode_masks(strided) == encode_masks(masks)
    assert encode_masks(np.asfortranarray(masks)) == encode_masks(masks)


def test_no_masks_round_trip_keeps_the_size():
    none = np.zeros((0, 4, 5), dtype=bool)
    packed = pack_rles(encode_masks(none), (4, 5))

    assert len(packed) == 0
    np.testing.assert_array_equal(decode_masks(unpack_rles(packed), packed.hw), none)
    assert decode_masks([], (4, 5)).shape == (0, 4, 5)


def test_packing_round_trips_through_plain_arrays(tmp_path):
    masks = _masks(count=9, hw=(20, 30))
    packed = pack_rles(encode_masks(masks), (20, 30))
    np.savez(tmp_path / "masks.npz", counts=packed.counts, offsets=packed.offsets)

    with np.load(tmp_path / "masks.npz", allow_pickle=False) as stored:
        again = PackedRles(stored["counts"], stored["offsets"], (20, 30))

    assert len(again) == 9
    np.testing.assert_array_equal(decode_masks(unpack_rles(again), again.hw), masks)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3, 4), dtype=np.uint8),
        np.zeros((3, 4), dtype=bool),
        np.zeros((2, 0, 4), dtype=bool),
    ],
)
def test_only_boolean_masks_of_an_image_are_encoded(wrong):
    with pytest.raises(ValueError, match="Expected masks_NHW to be bool of shape"):
        encode_masks(wrong)


def test_masks_of_another_size_are_refused():
    rles = encode_masks(_masks(hw=(4, 6)))
    with pytest.raises(ValueError, match="Expected masks of 6 x 4 pixels, got one of 4 x 6"):
        decode_masks(rles, (6, 4))
    with pytest.raises(ValueError, match="Expected masks of 6 x 4 pixels, got one of 4 x 6"):
        pack_rles(rles, (6, 4))


@pytest.mark.parametrize("counts", [b"", b"01", b"012", b"0121999", b"o3", b"\xff\xff"])
def test_damaged_run_lengths_are_noticed(counts):
    with pytest.raises(ValueError, match="Expected run lengths that fill 2 x 2 pixels"):
        decode_masks([{"size": [2, 2], "counts": counts}], (2, 2))


@pytest.mark.parametrize(
    ("counts", "offsets", "message"),
    [
        (np.zeros(4, np.int8), np.array([0, 4]), "counts to be one axis of uint8"),
        (np.zeros(4, np.uint8), np.array([0, 4], np.int32), "offsets to be one axis"),
        (np.zeros(4, np.uint8), np.zeros(0, np.int64), "offsets to be one axis"),
        (np.zeros(4, np.uint8), np.array([0, 3]), "rise from 0 to the 4 bytes"),
        (np.zeros(4, np.uint8), np.array([1, 4]), "rise from 0 to the 4 bytes"),
        (np.zeros(4, np.uint8), np.array([0, 3, 2, 4]), "rise from 0 to the 4 bytes"),
    ],
)
def test_packed_arrays_that_do_not_fit_are_refused(counts, offsets, message):
    with pytest.raises(ValueError, match=message):
        PackedRles(counts, offsets, (2, 2))
