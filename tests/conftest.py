"""What all tests share: as many threads as a worker has cores."""

from __future__ import annotations

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: more threads would only wait for each other.
    torch.set_num_threads(1)
