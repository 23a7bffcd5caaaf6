"""The learning-rate finders of Lightning and fastai, run by those libraries themselves on a task of the suite."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from thalweg.descent.process_state import preserve_process_state
from tuning.suite import SUITE

RAMP = 100  # steps, the default of both


def _parts(task: str, seed: int) -> tuple[nn.Module, Any, DataLoader[Any]]:
    """Give the task's model, loss and training data, as somebody would hand them to either library."""
    entry = SUITE[task]
    made = entry.make()
    torch.manual_seed(seed)
    x, y = (torch.as_tensor(part) for part in made.data)
    loader = DataLoader(
        TensorDataset(x, y), batch_size=entry.batch_size, shuffle=True, drop_last=len(x) > entry.batch_size
    )
    return made.model(), made.loss, loader


@contextlib.contextmanager
def _quiet() -> Iterator[str]:
    """Give a folder for what a library writes; random states stay as they are, and what it says is not shown."""
    with (
        preserve_process_state(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        tempfile.TemporaryDirectory() as folder,
    ):
        warnings.simplefilter("ignore")
        yield folder


def lightning(task: str, seed: int) -> tuple[float, int]:
    """Give the rate that Lightning suggests for AdamW, and the steps that it took. 1e-3 where it suggests none."""
    import pytorch_lightning as pl
    from pytorch_lightning.tuner import Tuner

    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self, model: nn.Module, loss: Any) -> None:
            super().__init__()
            self.model, self.loss, self.lr = model, loss, 1e-3

        def training_step(self, batch: Any, _: int) -> Any:
            return self.loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=self.lr)

    with _quiet() as folder:
        model, loss, loader = _parts(task, seed)
        trainer = pl.Trainer(
            max_epochs=-1, accelerator="cpu", logger=False, default_root_dir=folder, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        found = Tuner(trainer).lr_find(Module(model, loss), train_dataloaders=loader, num_training=RAMP)
    assert found is not None
    return float(found.suggestion() or 1e-3), len(found.results["lr"])


def fastai(task: str, seed: int) -> tuple[float, int]:
    """Give the rate of the valley that fastai finds for its Adam, and the steps that it took."""
    import fastai.callback.schedule  # noqa: F401  # gives Learner its finder
    from fastai.basics import DataLoaders, Learner

    with _quiet() as folder:
        model, loss, loader = _parts(task, seed)
        learner = Learner(DataLoaders(loader, loader), model, loss_func=loss, path=folder)
        with learner.no_bar(), learner.no_logging():
            found = learner.lr_find(num_it=RAMP, show_plot=False)
    return float(found.valley), len(learner.recorder.lrs)
