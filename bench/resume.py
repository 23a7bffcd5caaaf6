"""What a checkpoint costs: seconds to write it, bytes on the disk, and seconds from the call that resumes to the first step.

A model of 11.0 million parameters under AdamW. Files are in the system's cache when they are read, for all peers alike.
Each peer writes and resumes once per round; the peers take turns in one order in one round and in the reverse one in the next.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

import thalweg as tw
from models import BATCH, CASES, STAMPS, data
from runs import interrupted, plan_of, task_of
from thalweg.records import checkpoint

ROUNDS = 9
CASE = CASES["11m"]
STOP = 4  # steps taken before the checkpoint; one more is taken after it


class Peer(NamedTuple):
    """What is timed of a peer: `write()`, which gives what it wrote, and `resume()`, which takes one step; not `prepare()`."""

    write: Callable[[], Path]
    resume: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


def run(options: Any) -> dict[str, Any]:
    rounds, samples = options.rounds or ROUNDS, list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        peers = {name: make(Path(folder) / name) for name, make in PEERS.items()}
        for number in range(-1, rounds):
            for name in list(peers)[:: 1 if number % 2 else -1]:
                figures = measure(peers[name])
                if number >= 0:  # round -1 warms up
                    samples.append({"peer": name, "round": number, **figures})
    settings = {"peers": list(PEERS), "parameters": 11_036_682, "threads": torch.get_num_threads(), "rounds": rounds}
    return {"settings": settings, "samples": samples}


def measure(peer: Peer) -> dict[str, Any]:
    started = time.perf_counter()
    written = peer.write()
    write = time.perf_counter() - started
    size = sum(file.stat().st_size for file in ([written] if written.is_file() else written.rglob("*")))
    peer.prepare()
    STAMPS.clear()
    started = time.perf_counter()
    peer.resume()
    return {"write_seconds": round(write, 4), "bytes": size, "restart_seconds": round(STAMPS[-1] - started, 4)}


# PyTorch by hand


def torch_save(folder: Path, *, sync: bool) -> Peer:
    folder.mkdir()
    file = folder / "checkpoint.pt"
    x, y = data(CASE)
    model, optimizer = fresh()
    for _ in range(STOP):
        step(model, optimizer, x, y)

    def write() -> Path:
        file.unlink(missing_ok=True)
        with open(file, "wb") as stream:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, stream)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        return file

    def resume() -> None:
        model, optimizer = fresh()
        state = torch.load(file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step(model, optimizer, x, y)

    return Peer(write, resume)


def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = CASE.make()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x[:BATCH]), y[:BATCH]).backward()
    optimizer.step()


# Lightning


def lightning(folder: Path) -> Peer:
    import logging

    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    from peers.lightning_trainer import Classifier

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    loader = DataLoader(TensorDataset(*data(CASE)), batch_size=BATCH, shuffle=True)
    file = folder / "checkpoint.ckpt"

    def trainer(steps: int) -> pl.Trainer:
        return pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )

    first = trainer(STOP)
    first.fit(Classifier(CASE.make()), loader)

    def write() -> Path:
        file.unlink(missing_ok=True)
        first.save_checkpoint(file)
        return file

    def resume() -> None:
        trainer(STOP + 1).fit(Classifier(CASE.make()), loader, ckpt_path=file)

    return Peer(write, resume)


# thalweg


def ours(folder: Path, **knobs: Any) -> Peer:
    task, plan = task_of(CASE), plan_of(STOP + 1, **knobs)
    written = interrupted(task, plan, STOP, folder / "run")
    state = checkpoint.load(written).state

    def write() -> Path:
        shutil.rmtree(folder / "again", ignore_errors=True)
        return checkpoint.save(folder / "again", state, step=STOP)

    def prepare() -> None:
        shutil.rmtree(folder / "resumed", ignore_errors=True)
        shutil.copytree(folder / "run", folder / "resumed")

    return Peer(write, lambda: tw.resume(folder / "resumed", task), prepare)


PEERS: dict[str, Callable[[Path], Peer]] = {
    "torch.save": lambda folder: torch_save(folder, sync=False),
    "torch.save, fsync": lambda folder: torch_save(folder, sync=True),
    "Lightning": lightning,
    "thalweg": lambda folder: ours(folder, ema=None, snapshot_every=0),
    "thalweg, EMA": lambda folder: ours(folder, snapshot_every=0),
    "thalweg, EMA, snapshot": lambda folder: ours(folder, snapshot_every=3),
}
