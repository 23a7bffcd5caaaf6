"""Lightning: progress bar and logger at their defaults; checkpoints off, as none would be written while steps are timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from models import BATCH


class Classifier(pl.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)


def train(make: Callable[[], nn.Module], x: Tensor, y: Tensor, steps: int, folder: Path) -> nn.Module:
    classifier = Classifier(make())
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=1.0,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(classifier, DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True))
    return classifier.model
