"""Where models run: which device, how many items go through a model together, and copies to it.

How many items go together decides how a device sums, and so the last digits of every result. So it
is chosen from the device's memory before anything is computed; only memory that runs out all the
same lowers it, and then it is named.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from hybridgl.errors import HybridGLError, SettingError

__all__ = ["CPU_BATCHES", "BatchSizes", "Batches", "select_device", "send", "set_tf32"]

_logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_SHARE = 0.25
"""Share of a GPU's memory for what goes through one model together, a guess: SAM and CLIP work side
by side, and the weights, the masks and what the allocator keeps need the rest."""

_MASK_BYTES = 32 * 2**20
"""One mask in CLIP's blocks: 32 times its 257 tokens of ViT-L/14, by the shapes of its operations.
What its views take at the size of the image has a limit of its own (``views.masks_per_chunk``)."""


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """How many items go through a model together.

    Attributes:
        masks: of an image, through CLIP.
        points: point prompts, through SAM's decoder.
        images: images or crops, through SAM's encoder.
    """

    masks: int
    points: int
    images: int

    @classmethod
    def of(cls, total_bytes: int, *, point_bytes: int, image_bytes: int) -> BatchSizes:
        """Choose the sizes for a GPU.

        Args:
            total_bytes: of its memory, whatever else is in it.
            point_bytes: that one point prompt takes in SAM's decoder.
            image_bytes: that one image takes in SAM's encoder.

        Example:
            >>> BatchSizes.of(8 * 2**30, point_bytes=40 * 2**20, image_bytes=400 * 2**20)
            BatchSizes(masks=64, points=32, images=4)
        """
        room = int(_SHARE * total_bytes)
        return cls(
            masks=min(_power_of_two(room // _MASK_BYTES), _ENOUGH.masks),
            points=min(_power_of_two(room // point_bytes), _ENOUGH.points),
            images=min(_power_of_two(room // image_bytes), _ENOUGH.images),
        )

    def halved(self, *names: str) -> BatchSizes:
        """Halve some of the sizes; 1 stays."""
        return replace(self, **{name: max(getattr(self, name) // 2, 1) for name in names})

    def __str__(self) -> str:
        """Word them, as "128 masks, 64 points and 8 images"."""
        return f"{self.masks} masks, {self.points} points and {self.images} images"


CPU_BATCHES = BatchSizes(masks=16, points=16, images=1)
"""Those of a CPU: more make it no faster, and fall out of its caches."""

_ENOUGH = BatchSizes(masks=128, points=128, images=8)
"""More are assumed to make no GPU faster; ``python -m benchmarks.gpu`` measures it."""


class Batches:
    """The batch sizes that a process works with, halved where memory runs out.

    Attributes:
        sizes: those in use.
    """

    def __init__(self, sizes: BatchSizes) -> None:
        self.sizes = sizes
        self._lock = threading.Lock()

    def run(self, compute: Callable[[], _Result], *names: str) -> _Result:
        """Compute; where a GPU's memory runs out, halve batch sizes and compute again.

        Args:
            compute: reads ``sizes``; what it has done before it fails is done again.
            names: of the sizes that decide how much memory it takes.

        Raises:
            HybridGLError: memory runs out with sizes of 1, too.
        """
        while True:
            sizes = self.sizes
            try:
                return compute()
            except torch.cuda.OutOfMemoryError as error:
                if sizes == sizes.halved(*names):
                    raise HybridGLError(
                        "Expected a GPU with room for the smallest batches, got one whose memory "
                        "ran out; stop what else runs on it, or give --device cpu."
                    ) from error
            # Not inside the handler, where the error's frames still hold their tensors.
            self._halve(sizes, names)
            torch.cuda.empty_cache()

    def _halve(self, failed: BatchSizes, names: tuple[str, ...]) -> None:
        with self._lock:
            # Another thread may have halved some meanwhile.
            same = [name for name in names if getattr(self.sizes, name) == getattr(failed, name)]
            if same:
                self.sizes = self.sizes.halved(*same)
                _logger.warning(
                    "The GPU's memory ran out; from here on, %s go through the models together.",
                    self.sizes,
                )


def _power_of_two(number: int) -> int:
    """Return the largest power of two that is not above a number; 1 for 0."""
    return 1 << max(number.bit_length() - 1, 0)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without making the host wait for it.

    Args:
        tensor: on the CPU.
        device: where to.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def set_tf32(*, enabled: bool) -> None:
    """Let a GPU round factors of float32 products to ten bits, in this process, or not."""
    torch.backends.cuda.matmul.allow_tf32 = enabled
    torch.backends.cudnn.allow_tf32 = enabled


def select_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the first GPU, or else the CPU.

    Raises:
        SettingError: no device has this name, or it is not there, or nothing here was tested on one
            of its kind, such as a Mac's ``mps``.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise SettingError(
            f"Expected the device auto, cpu, cuda or cuda:i, got {name!r}, which is not supported; "
            f"use --device cpu."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError(
            f"Expected a device that is there, got {name!r} with {torch.cuda.device_count()} "
            f"GPUs; use --device auto or --device cpu."
        )
    return device
