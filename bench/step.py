"""One full optimiser step: clip by global norm, check that all is finite, AdamW with decay, average of the weights, norms.

The peer is the fastest way to get the same from PyTorch: foreach clipping, one look at the norm, the fused AdamW, foreach
lerp for the average. It gives no norms of single tensors; thalweg's step does. Gradients are made anew for each step by
copying, outside the clock, because PyTorch's clipping scales them in place.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MODELS: dict[str, list[tuple[int, ...]]] = {
    "MLP, 6 tensors": [(100, 64), (100,), (32, 100), (32,), (10, 32), (10,)],
    "many small, 180 tensors": [(52, 52), (74,)] * 90,
    "ResNet-like, 180 tensors": [(64, 64, 3, 3), (64,), (64,)] * 60,
    "GPT, 150 tensors": [(768, 256), (256,), (640, 256), (256,), (256,)] * 30,
    "GPT, 150 tensors, large": [(2304, 768), (768,), (2048, 768), (768,), (768,)] * 30,
}
THREADS = (2, 1)
ROUNDS = 7


def run(options: Any) -> dict[str, Any]:
    models = [model for model in MODELS if not options.only or model in options.only]
    samples = list[dict[str, Any]]()
    for threads in options.threads or THREADS:
        torch.set_num_threads(threads)
        for model in models:
            print(f"step: {model}, {threads} threads", file=sys.stderr, flush=True)
            samples += measured(model, threads, options.rounds or ROUNDS)
    sizes = {model: sum(torch.Size(s).numel() for s in MODELS[model]) for model in models}
    settings = {
        "models": models,
        "sizes": sizes,
        "threads": options.threads or THREADS,
        "rounds": options.rounds or ROUNDS,
    }
    return {"settings": settings, "samples": samples}


def measured(model: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time both, many steps a round, forwards in one round and backwards in the next."""
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in MODELS[model]]
    gradients = [torch.randn(shape, generator=generator) for shape in MODELS[model]]
    peers = {"torch": theirs(starts), "thalweg": ours(starts)}
    steps = max(3, min(200, 20_000_000 // sum(g.numel() for g in gradients)))
    samples = list[dict[str, Any]]()
    for number in range(-1, rounds):
        for who in list(peers)[:: 1 if number % 2 else -1]:
            weights, step = peers[who]
            times = list[float]()
            for _ in range(steps):
                for w, g in zip(weights, gradients, strict=True):
                    w.grad = g.clone()
                started = time.perf_counter()
                step()
                times.append(time.perf_counter() - started)
            if number >= 0:
                value = round(statistics.median(times) * 1e6, 2)
                samples.append({"model": model, "threads": threads, "who": who, "round": number, "microseconds": value})
    return samples


def theirs(starts: list[Tensor]) -> tuple[list[Tensor], Callable[[], object]]:
    weights = [start.clone().requires_grad_() for start in starts]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01, fused=True)
    average = [w.detach().clone() for w in weights]

    def step() -> None:
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        if bool(torch.isfinite(norm)):
            optimizer.step()
            torch._foreach_lerp_(average, [w.detach() for w in weights], 0.001)

    return weights, step


def ours(starts: list[Tensor]) -> tuple[list[Tensor], Callable[[], object]]:
    import thalweg as tw

    weights = [start.clone().requires_grad_() for start in starts]
    optimizer = tw.optim.AdamW(weights, lr=1e-3, weight_decay=0.01, clip_norm=1.0, ema=0.999)
    return weights, optimizer.step
