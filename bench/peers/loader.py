"""The same loop with PyTorch's DataLoader in front, as most tutorials write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from models import BATCH


def train(make: Callable[[], nn.Module], x: Tensor, y: Tensor, steps: int, folder: Path) -> nn.Module:
    model = make()
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    step, total = 0, 0.0
    while step < steps:
        for inputs, targets in loader:
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item()  # read at every step, as one does for a progress bar
            step += 1
    return model
