"""What all tests share: one thread for torch, whose small products gain nothing from more."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
