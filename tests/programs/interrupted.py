"""The two programs one after the other, in a process that a test may kill at any moment.

Apart from the tests, so that the server that forks these processes need not load them.
"""

from __future__ import annotations

import os
import time

import evaluation.samples
import hybridgl_main
import save_attn_gem

FIGURE = b"stands for a figure, which would take long to draw"

_FLUSH_SECONDS = 0.02


def run_on_a_slow_disk(stage_1: list[str], stage_2: list[str]) -> None:
    """Run both, with writes so slow that many a kill comes between a file's first byte and last."""
    flush = os.fsync

    def slow_flush(descriptor: int) -> None:
        time.sleep(_FLUSH_SECONDS)
        flush(descriptor)

    os.fsync = slow_flush
    evaluation.samples.draw_prediction = lambda *_, **__: FIGURE
    evaluation.samples.draw_gallery = lambda *_, **__: FIGURE
    raise SystemExit(save_attn_gem.main(stage_1) or hybridgl_main.main(stage_2))
