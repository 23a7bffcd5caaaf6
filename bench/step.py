"""One full optimiser step: clip by global norm, check that all is finite, AdamW with decay, average of the weights, norms.

The peers, in full in `peers/steps`: the fastest way to the same from PyTorch (foreach clipping, one check of the norm, the fused
AdamW, foreach lerp for the average), the same around other libraries' AdamW, and optax as one function under `jax.jit`. None
but thalweg gives norms of single tensors. Gradients are copied anew for each step, outside the measured time, because
PyTorch's clipping scales them in place.

Each peer runs in a process of its own, on as many cores as it has threads; in every round all of them are timed, in one order
in one round and in the reverse order in the next, and a ratio is of two times of one round. A peer whose package is not
installed is left out.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from loop import Worker

MODELS: dict[str, list[tuple[int, ...]]] = {
    "MLP, 6 tensors": [(100, 64), (100,), (32, 100), (32,), (10, 32), (10,)],
    "many small, 180 tensors": [(52, 52), (74,)] * 90,
    "ResNet-like, 180 tensors": [(64, 64, 3, 3), (64,), (64,)] * 60,
    "GPT, 150 tensors": [(768, 256), (256,), (640, 256), (256,), (256,)] * 30,
    "GPT, 150 tensors, large": [(2304, 768), (768,), (2048, 768), (768,), (768,)] * 30,
}
PEERS = {
    "torch": "torch_fused",
    "thalweg": "thalweg_cpu",
    "optax": "optax_jit",
    "pytorch_optimizer": "pytorch_optimizer_adamc",
    "heavyball": "heavyball_compiled",
    "deepspeed": "deepspeed_cpu",
}
"""Each peer's file in `peers/steps`."""

ALWAYS = {"torch", "thalweg"}

PACKAGES = ("torch", "numpy", "numba", "jax", "optax", "pytorch_optimizer", "heavyball", "deepspeed")
THREADS = (2, 1)
ROUNDS = 7


def run(options: Any) -> dict[str, Any]:
    models = [model for model in MODELS if model in options.only] or list(MODELS)
    wanted = {*options.only} & {*PEERS} or {*PEERS}
    chosen = [peer for peer in PEERS if peer in wanted | ALWAYS]
    samples, left_out = list[dict[str, Any]](), dict[str, str]()
    rounds, threads = options.rounds or ROUNDS, options.threads or THREADS
    for count in threads:
        workers = {peer: Worker(PEERS[peer], "stepper.py", str(count)) for peer in chosen}
        try:
            left_out |= {peer: why for peer, worker in workers.items() if (why := worker.answer()["missing"])}
            if failed := ALWAYS & left_out.keys():
                raise RuntimeError(f"{failed.pop()} failed; BENCH_SHOW_ERRORS=1 in the environment shows why.")
            present = {peer: worker for peer, worker in workers.items() if peer not in left_out}
            for model in models:
                print(f"step: {model}, {count} threads, {', '.join(present)}", file=sys.stderr, flush=True)
                samples += measured(present, model, count, rounds)
        finally:
            for worker in workers.values():
                worker.close()
    settings = {
        "models": models,
        "sizes": {model: sum(math.prod(shape) for shape in MODELS[model]) for model in models},
        "peers": [peer for peer in chosen if peer not in left_out],
        "left_out": left_out,
        "threads": threads,
        "rounds": rounds,
    }
    return {"settings": settings, "samples": samples}


def measured(workers: dict[str, Worker], model: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time all, many steps per round, in one order and the reverse by turns; round -1 warms up and is not recorded."""
    samples = list[dict[str, Any]]()
    for number in range(-1, rounds):
        figures = {
            who: workers[who].ask(model=model, proof=number < 0) for who in list(workers)[:: 1 if number % 2 else -1]
        }
        if number < 0:
            check({who: one["moved"] for who, one in figures.items()})
        else:
            shared = {"model": model, "threads": threads, "round": number}
            samples += [{**shared, "who": who, **one} for who, one in figures.items()]
    return samples


def check(moved: dict[str, tuple[float, float]]) -> None:
    """Raise RuntimeError where a peer's weights moved another way along the gradients, or shrank by another amount, than torch's.

    One per cent is allowed, since not all peers correct eps for the bias of the second moment.
    """
    down, shrunk = moved["torch"]
    for who, (along_gradients, along_starts) in moved.items():
        if abs(along_gradients - down) > 0.01 * abs(down) or abs(along_starts - shrunk) > 0.001 * abs(down):
            raise RuntimeError(
                f"{who} takes other steps than torch: {along_gradients, along_starts}, not {down, shrunk}."
            )
