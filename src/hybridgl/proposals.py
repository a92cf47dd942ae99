"""SAM's proposals of images: each image's computed once, and kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from hybridgl.config import ProposalConfig
from hybridgl.errors import DataError
from hybridgl.images import RgbImage
from hybridgl.masks import Proposals
from hybridgl.models import Models
from hybridgl.store import Store, entry_key

__all__ = ["SamProposals"]


class SamProposals:
    """SAM's masks of images, in its generator's order.

    Args:
        models: hold SAM.
        config: settings of its mask generator.
        store: keeps the masks; None computes them every time.
        device: kind of device whose masks are wanted; None is that of the models. Another's masks
            are only loaded: they cannot be made here.
    """

    def __init__(
        self,
        models: Models,
        config: ProposalConfig,
        store: Store | None,
        *,
        device: str | None = None,
    ) -> None:
        self.config = config
        self._models = models
        self._store = store
        self._device = device or models.device.type

    def propose(self, image: RgbImage) -> Proposals:
        """Load or compute the masks of one image."""
        return self.submit([image])[0]()

    def submit(self, images: Sequence[RgbImage]) -> list[Callable[[], Proposals]]:
        """Do the device's part of making the masks of images that the store lacks.

        Returns:
            For every image a function that does the host's part, in any thread: it loads the
            masks, or cleans and stores them.

        Raises:
            DataError: the store lacks masks that another kind of device has made.
        """
        keys = [self._key(image) for image in images]
        finishers: list[Callable[[], Proposals] | None] = [self._loaded(key) for key in keys]
        missing = [row for row, finish in enumerate(finishers) if finish is None]
        if missing and self._device != self._models.device.type:
            raise DataError(
                f"Expected the masks that were made on {self._device} in the store, got none of "
                f"{len(missing)} images; copy the store they were made with over this one."
            )
        if missing:  # otherwise SAM need not be loaded
            pixels = [images[row].pixels_HW3 for row in missing]
            unfinished = self._models.sam.submit(pixels, self.config)
            for row, finish in zip(missing, unfinished, strict=True):
                finishers[row] = partial(self._finish, keys[row], finish)
        return [finish for finish in finishers if finish is not None]

    def _loaded(self, key: str) -> Callable[[], Proposals] | None:
        entry = self._store.load("proposals", key) if self._store is not None else None
        return partial(Proposals.from_entry, entry.arrays, entry.meta) if entry else None

    def _finish(self, key: str, finish: Callable[[], Proposals]) -> Proposals:
        proposals = finish()
        if self._store is not None:
            self._store.save("proposals", key, *proposals.to_entry())
        return proposals

    def _key(self, image: RgbImage) -> str:
        inputs = {
            "image": image.sha256,
            "sam": self._models.sha256("sam"),
            "device": self._device,
            "numerics": self._models.numerics("sam"),
            "config": self.config.json(),
        }
        return entry_key("proposals", inputs)
