"""A split divided among several runs: each takes every n-th image, and fills the store."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hybridgl.errors import SettingError

__all__ = ["Shard"]


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
        return f"{self.index}/{self.total}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read a shard from a text such as "2/8".

        Raises:
            SettingError: another text, or an index that is not 1 to n.
        """
        match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise SettingError(
                f"Expected i/n with i from 1 to n, such as 2/8, and n below 10,000, got "
                f"{text[:40]!r}; number the shards from 1."
            )
        return cls(int(match[1]), int(match[2]))

    def of(self, image_ids: Iterable[int]) -> list[int]:
        """Return the shard's images: every n-th, so that shards take about the same time."""
        return list(image_ids)[self.index - 1 :: self.total]
