"""Automatic masks of SAM: point prompts in a grid over images and crops, filtered, deduplicated.

The same masks, boxes, scores and order as segment_anything's ``SamAutomaticMaskGenerator``, up to
the rounding of float32: images and crops go through the encoder in batches, a mask is drawn only
where its predicted IoU passes, and nothing waits for the device between one batch of point prompts
and the next.

Source: Kirillov et al., "Segment Anything" (ICCV 2023), section 5 and appendix B.
Shapes: N masks, Q point prompts, M masks of each, H x W pixels of an image, h x w of a crop, R side
of the encoder's input, C channels of its embedding, G places along its side, g = 4 G. Boxes are x0,
y0, x1, y1 in pixels, right and bottom inclusive.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hybridgl.config import ProposalConfig
from hybridgl.devices import Batches, send
from hybridgl.images import resized
from hybridgl.masks import Proposals, without_small_regions
from hybridgl.models import sam_encoder
from hybridgl.models.sam_decoder import DecodedPoints, PointDecoder
from hybridgl.models.transformer import linear
from hybridgl.timing import timer

__all__ = ["MaskGenerator", "crop_boxes", "point_grid"]

_logger = logging.getLogger(__name__)

_NMS_IOU = 0.7
"""NMS threshold on box IoU (``box_nms_thresh`` of segment_anything)."""

_STABILITY_OFFSET = 1.0
"""Logits by which the threshold is raised and lowered to see how stable a mask is."""

_CROP_OVERLAP = 512 / 1500
"""Share of an image's shorter side by which the crops of the first layer overlap."""

_EDGE_PIXELS = 20.0
"""Masks that end so near to an edge of a crop that is none of the image are left out."""

_DRAWN_BYTES = 2**29
"""Memory for masks that may yet prove unstable; a GPU is not awaited to leave these out earlier."""

_SCALERS = min(os.cpu_count() or 1, 4)
"""Threads that scale images, 9 ms each, when a GPU waits for several."""

_LOGIT_BYTES = 2**28
"""Memory for the masks, at the size of the crop, that are drawn at once."""


@dataclass(frozen=True, slots=True, eq=False)
class _Masks:
    """Masks of one crop, on the device.

    Attributes:
        bits: eight pixels a byte, uint8, (N, bytes).
        boxes_N4: int64, in pixels of the crop.
        iou_N: predicted IoU.
        stability_N: IoU of the mask cut higher and lower.
    """

    bits: Tensor
    boxes_N4: Tensor
    iou_N: Tensor
    stability_N: Tensor

    def __getitem__(self, rows: Tensor) -> _Masks:
        return _Masks(
            self.bits[rows], self.boxes_N4[rows], self.iou_N[rows], self.stability_N[rows]
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Crop:
    """Part of an image as the encoder gets it.

    Attributes:
        box: x0, y0, x1, y1, right and bottom exclusive.
        layer: 0 for the whole image.
        scaled_3hw: its pixels, uint8, the longer side R.
    """

    box: tuple[int, int, int, int]
    layer: int
    scaled_3hw: Tensor

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width in pixels of the image."""
        x0, y0, x1, y1 = self.box
        return y1 - y0, x1 - x0


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """Masks of one crop, on the host.

    Attributes:
        box: of the crop: x0, y0, x1, y1, right and bottom exclusive.
        places_N: places of the masks among all of their image.
        bits: eight pixels a byte, (N, bytes).
    """

    box: tuple[int, int, int, int]
    places_N: NDArray[np.int64]
    bits: NDArray[np.uint8]


def point_grid(points_per_side: int) -> NDArray[np.float64]:
    """Spread points evenly over an image, row by row.

    >>> point_grid(2).tolist()
    [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]

    Returns:
        (Q, 2): x and y as shares of width and height.
    """
    offset = 1 / (2 * points_per_side)
    places = np.linspace(offset, 1 - offset, points_per_side)
    return np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)


def crop_boxes(hw: tuple[int, int], layers: int) -> list[tuple[tuple[int, int, int, int], int]]:
    """Return the image and, layer by layer, its overlapping crops: four times as many in each.

    Args:
        hw: height and width of the image in pixels.
        layers: of crops.

    Returns:
        Boxes x0, y0, x1, y1, right and bottom exclusive, each with its layer; 0 is the image.
    """
    height, width = hw
    boxes = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        along = 2**layer
        overlap = int(_CROP_OVERLAP * min(hw) * (2 / along))
        crop_h, crop_w = (math.ceil((overlap * (along - 1) + side) / along) for side in hw)
        for column, row in itertools.product(range(along), repeat=2):
            x0, y0 = (crop_w - overlap) * column, (crop_h - overlap) * row
            boxes.append(((x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)), layer))
    return boxes


class MaskGenerator:
    """Generator of automatic masks.

    Args:
        sam: segment_anything's ``Sam``, ready to run.
        config: settings, named as there.
        device: where it runs.
        batches: how many images and point prompts go together.
        encode: embeds images, as ``sam_encoder.encode`` does; may be a compiled one.
        decode: predicts from point prompts, as ``PointDecoder.decode`` does; likewise.
    """

    def __init__(
        self,
        sam: Any,
        config: ProposalConfig,
        device: torch.device,
        batches: Batches,
        encode: Callable[[Any, Tensor], Tensor] = sam_encoder.encode,
        decode: Callable[[PointDecoder, Tensor], DecodedPoints] = PointDecoder.decode,
    ) -> None:
        self._sam, self._config, self._device, self._batches = sam, config, device, batches
        self._encode, self._decode = encode, decode
        self._side: int = sam.image_encoder.img_size

    @torch.inference_mode()
    @timer("SAM decoder")
    def submit(self, images: Sequence[NDArray[np.uint8]]) -> list[Callable[[], Proposals]]:
        """Generate masks on the device, in the order of segment_anything's generator.

        Where an image has too few pixels for a layer of crops, that layer and those after it are
        left out. An image so long and thin that no row or no column of it would be left has no
        proposals; that is logged as a warning.

        Args:
            images: uint8 RGB, (H, W, 3), of any sizes.

        Returns:
            For every image, a function that does what is left, which is the host's alone, and
            returns the proposals: it may run in another thread.
        """
        with ThreadPoolExecutor(_SCALERS) as pool:
            crops_of = list(pool.map(self._crops, images))

        def generate() -> list[Callable[[], Proposals]]:
            embeddings = self._embeddings([crop for crops in crops_of for crop in crops])
            unfinished = []
            for image_HW3, crops in zip(images, crops_of, strict=True):
                hw = image_HW3.shape[:2]
                found = [(crop, self._masks(next(embeddings), crop, hw)) for crop in crops]
                unfinished.append(self._gather(found, hw))
            return unfinished

        return self._batches.run(generate, "images", "points")

    def _crops(self, image_HW3: NDArray[np.uint8]) -> list[_Crop]:
        """Scale the image and its crops; return none where the image cannot be scaled."""
        height, width, _ = image_HW3.shape
        for layers in range(self._config.crop_n_layers, -1, -1):
            boxes = crop_boxes((height, width), layers)
            sizes = [self._scaled_size(x1 - x0, y1 - y0) for (x0, y0, x1, y1), _ in boxes]
            if all(min(size) > 0 for size in sizes):
                return [
                    _Crop(box, layer, _scaled(image_HW3, box, size))
                    for (box, layer), size in zip(boxes, sizes, strict=True)
                ]
        _logger.warning(
            "Expected an image that SAM can scale to a longer side of %d pixels, got %d x %d, of "
            "which no row or no column is left then, so that it has no proposals; crop it to a "
            "usual shape.",
            self._side,
            height,
            width,
        )
        return []

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height in pixels of the encoder's input."""
        if min(width, height) <= 0:
            return 0, 0
        scale = self._side / max(width, height)
        return int(width * scale + 0.5), int(height * scale + 0.5)

    def _embeddings(self, crops: Sequence[_Crop]) -> Iterator[Tensor]:
        """Embed every crop, (C, G, G), a batch at a time."""
        per_batch = self._batches.sizes.images
        for start in range(0, len(crops), per_batch):
            batch = torch.stack([self._padded(crop) for crop in crops[start : start + per_batch]])
            with timer("SAM encoder"):
                embeddings = self._encode(self._sam.image_encoder, batch)
            yield from embeddings

    def _padded(self, crop: _Crop) -> Tensor:
        pixels_3hw = send(crop.scaled_3hw, self._device)
        height, width = pixels_3hw.shape[1:]
        normed_3hw = (pixels_3hw - self._sam.pixel_mean) / self._sam.pixel_std
        return F.pad(normed_3hw, (0, self._side - width, 0, self._side - height))

    def _masks(self, embedding_CGG: Tensor, crop: _Crop, hw: tuple[int, int]) -> _Masks:
        """Make the masks of a crop that pass the filters, without the duplicates among them."""
        config = self._config
        decoder = PointDecoder(self._sam, embedding_CGG)
        prompts_Q2C = decoder.embed(self._points(crop))
        upsample = _Upsampler(self._sam, crop, self._device)
        drawn: list[_Masks] = []
        waiting: _Filtered | None = None
        for some_Q2C in prompts_Q2C.split(self._batches.sizes.points):
            # While the device decodes these prompts, the host learns which masks of the last ones
            # are to be drawn.
            decoded = _Filtered(self._decode(decoder, some_Q2C), config.pred_iou_thresh)
            if waiting:
                drawn += self._draw(decoder, upsample, waiting)
            if sum(masks.bits.numel() for masks in drawn) > _DRAWN_BYTES:
                drawn = [self._good(_concatenated(drawn, crop.hw, self._device), crop, hw)]
            waiting = decoded
        if waiting:
            drawn += self._draw(decoder, upsample, waiting)
        masks = self._good(_concatenated(drawn, crop.hw, self._device), crop, hw)
        return masks[_distinct(masks.boxes_N4, masks.iou_N)]

    def _good(self, masks: _Masks, crop: _Crop, hw: tuple[int, int]) -> _Masks:
        """Leave out masks that are not stable, or cut by a crop."""
        good_N = ~_near_inner_edge(masks.boxes_N4, crop.box, hw)
        if self._config.stability_score_thresh > 0:
            good_N &= masks.stability_N >= self._config.stability_score_thresh
        return masks[good_N.nonzero()[:, 0]]

    def _points(self, crop: _Crop) -> Tensor:
        """Return the crop's points in pixels of the encoder's input, float64, (Q, 2)."""
        config, (height, width) = self._config, crop.hw
        along = config.points_per_side // config.crop_n_points_downscale_factor**crop.layer
        scaled_h, scaled_w = crop.scaled_3hw.shape[1:]
        points_Q2 = point_grid(along) * (width, height)
        points_Q2 = points_Q2 * (scaled_w / width, scaled_h / height)
        return send(torch.from_numpy(points_Q2), self._device)

    def _draw(
        self, decoder: PointDecoder, upsample: _Upsampler, filtered: _Filtered
    ) -> Iterator[_Masks]:
        """Draw the masks that pass the predicted IoU, in bounded batches."""
        points, pairs_N2 = filtered.survivors()
        if not len(pairs_N2):
            return
        low_Ngg = decoder.logits(points)[pairs_N2[:, 0], pairs_N2[:, 1]]
        iou_N = points.iou_QM[pairs_N2[:, 0], pairs_N2[:, 1]]
        threshold = self._sam.mask_threshold
        for some_Ngg, some_iou_N in zip(
            low_Ngg.split(upsample.per_batch), iou_N.split(upsample.per_batch), strict=True
        ):
            logits_Nhw = upsample(some_Ngg)
            masks_Nhw = logits_Nhw > threshold
            yield _Masks(
                _packed(masks_Nhw), _boxes(masks_Nhw), some_iou_N, _stability(logits_Nhw, threshold)
            )

    def _gather(
        self, found: Sequence[tuple[_Crop, _Masks]], hw: tuple[int, int]
    ) -> Callable[[], Proposals]:
        """Leave out duplicates among an image's crops; return what is left to do."""
        if not sum(len(masks.iou_N) for _, masks in found):
            return partial(Proposals.empty, hw)
        boxes_N4 = torch.cat(
            [
                masks.boxes_N4 + send(torch.tensor(crop.box[:2] * 2), self._device)
                for crop, masks in found
            ]
        )
        counts = [len(masks.iou_N) for _, masks in found]
        kept_N = torch.arange(len(boxes_N4), device=self._device)
        if len(found) > 1:
            # Masks of smaller crops are preferred.
            areas = torch.tensor([math.prod(crop.hw) for crop, _ in found])
            preference_N = (1 / areas).repeat_interleave(torch.tensor(counts))
            kept_N = _distinct(boxes_N4, send(preference_N, self._device))
        drawn = []
        for (crop, masks), first in zip(found, itertools.accumulate([0, *counts]), strict=False):
            places_N = ((kept_N >= first) & (kept_N < first + len(masks.iou_N))).nonzero()[:, 0]
            bits = masks.bits[kept_N[places_N] - first]
            drawn.append(_Drawn(crop.box, places_N.cpu().numpy(), bits.cpu().numpy()))
        return partial(
            _finish,
            drawn,
            hw,
            boxes_N4[kept_N].cpu().numpy(),
            torch.cat([masks.iou_N for _, masks in found])[kept_N].cpu().numpy(),
            torch.cat([masks.stability_N for _, masks in found])[kept_N].cpu().numpy(),
            self._config.min_mask_region_area,
        )


@timer("SAM decoder")
def _finish(
    drawn: Sequence[_Drawn],
    hw: tuple[int, int],
    boxes_N4: NDArray[np.int64],
    iou_N: NDArray[np.float32],
    stability_N: NDArray[np.float32],
    min_area: int,
) -> Proposals:
    """Place masks in the image, without small regions and the duplicates that these hid."""
    masks_NHW = np.zeros((len(iou_N), *hw), dtype=np.bool_)
    for part in drawn:
        x0, y0, x1, y1 = part.box
        shape = (-1, y1 - y0, x1 - x0)
        pixels = np.unpackbits(part.bits, axis=1, count=shape[1] * shape[2])
        masks_NHW[part.places_N, y0:y1, x0:x1] = pixels.view(np.bool_).reshape(shape)
    if min_area > 0:
        changed_N = np.zeros(len(masks_NHW), dtype=bool)
        for index, mask_HW in enumerate(masks_NHW):
            masks_NHW[index], changed_N[index] = without_small_regions(mask_HW, min_area)
        boxes_N4[changed_N] = _boxes(torch.from_numpy(masks_NHW[changed_N])).numpy()
        # Masks that needed no change are preferred.
        unchanged_N = torch.from_numpy(~changed_N).float()
        kept_N = _distinct(torch.from_numpy(boxes_N4), unchanged_N).numpy()
        masks_NHW, boxes_N4 = masks_NHW[kept_N], boxes_N4[kept_N]
        iou_N, stability_N = iou_N[kept_N], stability_N[kept_N]
    boxes_xywh = np.concatenate([boxes_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]], axis=1)
    return Proposals(masks_NHW, boxes_xywh, iou_N, stability_N)


class _Filtered:
    """Decoded prompts, and which of their masks pass the predicted IoU, on its way to the host."""

    def __init__(self, points: DecodedPoints, threshold: float) -> None:
        self._points = points
        passed_QM = torch.ones_like(points.iou_QM, dtype=torch.bool)
        if threshold > 0:
            passed_QM = points.iou_QM > threshold
        self._on_host_QM, self._ready = passed_QM, None
        if passed_QM.device.type == "cuda":
            self._on_host_QM = torch.empty_like(passed_QM, device="cpu", pin_memory=True)
            self._on_host_QM.copy_(passed_QM, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(passed_QM.device))

    def survivors(self) -> tuple[DecodedPoints, Tensor]:
        """Return the prompts of which a mask passed; row among them and mask of each that did."""
        if self._ready:
            self._ready.synchronize()
        points, device = self._points, self._points.iou_QM.device
        rows = self._on_host_QM.any(dim=1)
        pairs_N2 = send(self._on_host_QM[rows].nonzero(), device)
        kept = send(rows.nonzero()[:, 0], device)
        if len(kept) == len(rows):
            return points, pairs_N2
        some = DecodedPoints(
            points.iou_QM[kept],
            points.weights_QME[kept],
            points.places_QPC[kept],
        )
        return some, pairs_N2


class _Upsampler:
    """Resampling of logits from the decoder's resolution to the size of a crop.

    As released: enlarged to the encoder's input, cut to the part that the crop fills, resized to
    the crop, bilinear each time. The two are one linear map along each axis.
    """

    def __init__(self, sam: Any, crop: _Crop, device: torch.device) -> None:
        low, side = 4 * sam.image_encoder.img_size // _patch(sam), sam.image_encoder.img_size
        height, width = crop.hw
        scaled_h, scaled_w = crop.scaled_3hw.shape[1:]
        self._rows_hg = send(_resampling(low, side, scaled_h, height), device)
        self._columns_wg = send(_resampling(low, side, scaled_w, width), device)
        self.per_batch = max(_LOGIT_BYTES // (4 * height * width), 1)

    def __call__(self, low_Ngg: Tensor) -> Tensor:
        """Resample logits to the size of the crop, (N, h, w)."""
        rows_Ngh = linear(low_Ngg.transpose(1, 2), self._rows_hg)
        return linear(rows_Ngh.transpose(1, 2), self._columns_wg)


def _patch(sam: Any) -> int:
    return sam.image_encoder.patch_embed.proj.stride[0]


@lru_cache(maxsize=8)  # 1.6 ms for an image of 640 x 480, and most have the same size
def _resampling(low: int, side: int, used: int, size: int) -> Tensor:
    """Make the matrix, (size, low), that resizes an axis to side, cuts it to used, resizes that.

    Its columns are what becomes of each unit vector.
    """
    unit = torch.eye(low)[None, :, None]
    enlarged = F.interpolate(unit, (1, side), mode="bilinear", align_corners=False)
    cut = enlarged[..., :used]
    return F.interpolate(cut, (1, size), mode="bilinear", align_corners=False)[0, :, 0].T


def _scaled(
    image_HW3: NDArray[np.uint8], box: tuple[int, int, int, int], size: tuple[int, int]
) -> Tensor:
    """Scale a crop, bilinear and antialiased as PIL does it, uint8, (3, h, w)."""
    x0, y0, x1, y1 = box
    crop = Image.fromarray(np.ascontiguousarray(image_HW3[y0:y1, x0:x1]))
    scaled_hw3 = np.array(resized(crop, size, Image.Resampling.BILINEAR))
    return torch.from_numpy(scaled_hw3).permute(2, 0, 1).contiguous()


def _distinct(boxes_N4: Tensor, scores_N: Tensor) -> Tensor:
    """Return the indices without boxes that overlap with a better one, best first, int64.

    This is the call of segment_anything: among equal scores, a plain ``nms`` has another order.
    """
    from torchvision.ops import batched_nms

    category_N = torch.zeros_like(scores_N)
    kept_N: Tensor = batched_nms(boxes_N4.float(), scores_N, category_N, _NMS_IOU)
    return kept_N


def _stability(logits_Nhw: Tensor, threshold: float) -> Tensor:
    """Compute the IoU of every mask cut at a higher and a lower threshold, float32, (N,)."""
    higher_N = _areas(logits_Nhw > threshold + _STABILITY_OFFSET)
    return higher_N / _areas(logits_Nhw > threshold - _STABILITY_OFFSET)


def _areas(masks_Nhw: Tensor) -> Tensor:
    """Count the pixels of every mask, int32, (N,)."""
    if masks_Nhw.device.type == "cpu":  # NumPy counts ten times faster than torch
        return torch.from_numpy(np.count_nonzero(masks_Nhw.numpy(), axis=(1, 2)).astype(np.int32))
    return masks_Nhw.flatten(1).sum(dim=1, dtype=torch.int32)


def _boxes(masks_Nhw: Tensor) -> Tensor:
    """Return first and last column and row with a pixel, int64, (N, 4); 0 for an empty mask."""
    pixels_Nhw = masks_Nhw.view(torch.uint8)  # whose maximum is faster than any() of booleans
    edges = []
    for line in (pixels_Nhw.amax(dim=1), pixels_Nhw.amax(dim=2)):
        last = line.shape[1] - 1 - line.flip(1).argmax(dim=1)
        edges.append((line.argmax(dim=1), torch.where(line.amax(dim=1) > 0, last, 0)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], dim=1)


def _near_inner_edge(
    boxes_N4: Tensor, crop: tuple[int, int, int, int], hw: tuple[int, int]
) -> Tensor:
    """Decide whether a mask ends near an edge of its crop that is none of the image."""
    (crop_x0, crop_y0, crop_x1, crop_y1), (height, width) = crop, hw
    x0_N, y0_N, x1_N, y1_N = boxes_N4.float().unbind(dim=1)
    near_N = torch.zeros_like(x0_N, dtype=torch.bool)
    for place_N, of_crop, of_image in (
        (x0_N + crop_x0, crop_x0, 0),
        (y0_N + crop_y0, crop_y0, 0),
        (x1_N + crop_x0, crop_x1, width),
        (y1_N + crop_y0, crop_y1, height),
    ):
        near_crop_N = (place_N - of_crop).abs() <= _EDGE_PIXELS
        near_N |= near_crop_N & ((place_N - of_image).abs() > _EDGE_PIXELS)
    return near_N


def _packed(masks_Nhw: Tensor) -> Tensor:
    """Pack masks, eight pixels a byte, the first in the highest bit; uint8, (N, bytes)."""
    pixels = masks_Nhw.flatten(1)
    if pixels.device.type == "cpu":
        return torch.from_numpy(np.packbits(pixels.numpy(), axis=1))
    padded = F.pad(pixels.to(torch.uint8), (0, -pixels.shape[1] % 8))
    eights = padded.unflatten(1, (-1, 8))
    places_8 = torch.arange(7, -1, -1, device=eights.device, dtype=torch.uint8)
    return (eights << places_8).sum(dim=2, dtype=torch.uint8)


def _concatenated(parts: Sequence[_Masks], hw: tuple[int, int], device: torch.device) -> _Masks:
    if parts:
        return _Masks(
            torch.cat([part.bits for part in parts]),
            torch.cat([part.boxes_N4 for part in parts]),
            torch.cat([part.iou_N for part in parts]),
            torch.cat([part.stability_N for part in parts]),
        )
    return _Masks(
        torch.zeros(0, -(-hw[0] * hw[1] // 8), dtype=torch.uint8, device=device),
        torch.zeros(0, 4, dtype=torch.int64, device=device),
        torch.zeros(0, device=device),
        torch.zeros(0, device=device),
    )
