"""Hugging Face's Trainer: clipping, progress and logging at their defaults; nothing saved, nothing reported elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from models import BATCH


class Examples(Dataset):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


class WithLoss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def train(make: Callable[[], nn.Module], x: Tensor, y: Tensor, steps: int, folder: Path) -> nn.Module:
    model = WithLoss(make())
    settings = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        weight_decay=0.01,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        save_strategy="no",
        report_to="none",
    )
    Trainer(model=model, args=settings, train_dataset=Examples(x, y)).train()
    return model.model
