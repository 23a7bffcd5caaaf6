"""One step of every rule: nanoseconds and bytes per weight, and what share of the memory bandwidth that is.

Bytes are those of the equation, each array counted once for every time it must be read or written: the gradient twice (its norm
is measured first), the weights and every array of state read and written, the average too where there is one, and what the
rule's sums read before the update. So an engine that makes copies shows them as a smaller share. The bandwidth is that of
`a += s * b` on two flat tensors of as many numbers (`torch.add` in place: three words per number), measured in the same round
with as many threads.

"Everything on" is clipping by the global norm, an average of the weights (unless the rule keeps one), and every tensor's norms.

The AdamW kernel alone (without the Python around it, and without the norms of the gradients) is timed too: right after torch's
threads have worked, when they still spin on their cores, and after they have gone to sleep.
"""

from __future__ import annotations

import dis
import inspect
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import thalweg as tw
from step import MODELS
from thalweg.optim.engines import fused
from thalweg.rules import RULES
from thalweg.rules.rule import Rule

PACKAGES = ("torch", "numpy", "numba")
SIZES = ("GPT, 150 tensors", "MLP, 6 tensors")
THREADS = (2, 1)
ROUNDS = 5
WORD = 4
SECONDS = 0.2
"""How long each measurement of a round takes; it has at least three steps."""

REST = 0.02
"""Seconds after which GNU OpenMP's threads have long stopped spinning."""


def run(options: Any) -> dict[str, Any]:
    rules = [name for name in RULES if not options.only or name in options.only]
    threads, rounds = options.threads or THREADS, options.rounds or ROUNDS
    samples = list[dict[str, Any]]()
    for count in threads:
        torch.set_num_threads(count)
        for model in SIZES:
            shapes = MODELS[model]
            for name in rules:
                print(f"rules: {name}, {model}, {count} threads", file=sys.stderr, flush=True)
                samples += [{"threads": count, **sample} for sample in measured(RULES[name], shapes, rounds)]
            samples += [{"threads": count, **sample} for sample in kernel_samples(shapes, rounds)]
    sizes = {model: sum(map(math.prod, MODELS[model])) for model in SIZES}
    return {"settings": {"rules": rules, "sizes": sizes, "threads": threads, "rounds": rounds}, "samples": samples}


def measured(rule: Rule, shapes: list[tuple[int, ...]], rounds: int) -> list[dict[str, Any]]:
    """Time a rule with everything off and on, between two measurements of the memory bandwidth."""
    add, count = adding(shapes), sum(map(math.prod, shapes))
    optimizers = {full: optimizer(rule, shapes, full) for full in (False, True)}
    steps = {full: stepping(one, full) for full, one in optimizers.items()}
    for step in (add, *steps.values()):
        step()
    samples = list[dict[str, Any]]()
    for number in range(rounds):
        before = timed(add)
        times = {full: timed(steps[full]) for full in [False, True][:: 1 if number % 2 else -1]}
        bandwidth = 3 * WORD * count / ((before + timed(add)) / 2)
        for full, seconds in times.items():
            size = bytes_moved(rule, optimizers[full])
            samples.append(
                {
                    "rule": rule.name,
                    "engine": "tensors" if rule.is_matrix else "cpu",
                    "weights": count,
                    "full": full,
                    "round": number,
                    "nanoseconds": figure(seconds / count * 1e9),
                    "bytes": round(size / count, 2),
                    "share": figure(size / seconds / bandwidth),
                }
            )
    return samples


def kernel_samples(shapes: list[tuple[int, ...]], rounds: int) -> list[dict[str, Any]]:
    """Time the kernel that updates the weights by AdamW, while torch's threads spin beside it and while they sleep."""
    add, count = adding(shapes), sum(map(math.prod, shapes))
    one = optimizer(RULES["adamw"], shapes, full=False)
    times, kernel = list[float](), fused.run

    def timed_kernel(*given: Any) -> None:
        started = time.perf_counter()
        kernel(*given)
        times.append(time.perf_counter() - started)

    def median_time(spins: bool) -> float:
        del times[:]
        each = 10 if count > 1e6 else 50
        for _ in range(each):
            add() if spins else time.sleep(REST)
            one.step()
        return statistics.median(times[1::2])  # every other kernel is that of the gradients' norms

    samples = list[dict[str, Any]]()
    fused.run = timed_kernel
    try:
        one.step()
        size = bytes_moved(RULES["adamw"], one) - WORD * count
        for number in range(rounds):
            before = timed(add)
            times_of = {spins: median_time(spins) for spins in [False, True][:: 1 if number % 2 else -1]}
            bandwidth = 3 * WORD * count / ((before + timed(add)) / 2)
            samples += [
                {
                    "rule": "adamw",
                    "engine": "cpu",
                    "weights": count,
                    "sweep": "spinning" if spins else "asleep",
                    "round": number,
                    "nanoseconds": figure(seconds / count * 1e9),
                    "bytes": round(size / count, 2),
                    "share": figure(size / seconds / bandwidth),
                }
                for spins, seconds in times_of.items()
            ]
    finally:
        fused.run = kernel
    return samples


def optimizer(rule: Rule, shapes: list[tuple[int, ...]], full: bool) -> tw.optim.Optimizer:
    """Make one with a rate so small that the same gradient at every step does not move the weights far."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    for w in weights:
        w.grad = torch.randn(w.shape, generator=generator)
    everything = {"clip_norm": 1.0} | ({"ema": 0.999} if rule.average is None else {})
    return tw.optim.Optimizer(weights, rule, lr=1e-6, **(everything if full else {}))


def stepping(one: tw.optim.Optimizer, full: bool) -> Callable[[], object]:
    def step() -> None:
        one.measure = full
        one.step()

    return step


def adding(shapes: list[tuple[int, ...]]) -> Callable[[], object]:
    """Give the operation that the memory bandwidth is measured by."""
    a, b = (torch.zeros(sum(map(math.prod, shapes))) for _ in range(2))
    return lambda: a.add_(b, alpha=0.5)


def timed(step: Callable[[], object]) -> float:
    """Give the median time of as many steps as `SECONDS` allows."""
    times, ends = list[float](), time.perf_counter() + SECONDS
    while len(times) < 3 or (time.perf_counter() < ends and len(times) < 2000):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def bytes_moved(rule: Rule, one: tw.optim.Optimizer) -> int:
    """Give the bytes that a step must read and write, by the state that the optimiser has."""
    weights: list[Tensor] = one.param_groups[0]["params"]
    numbers = sum(w.numel() for w in weights)
    state = sum(
        value.nbytes
        for w in weights
        for key, value in one.state[w].items()
        if isinstance(value, Tensor) and key != "step" and key not in rule.carried
    )
    summed = len(arrays_of(rule)) * WORD * numbers if rule.sums is not None else 0
    return (1 + 1 + 2) * WORD * numbers + 2 * state + summed


def arrays_of(rule: Rule) -> set[str]:
    """Name the arrays that a rule's sums read: weights, gradient and state, as far as the equation uses them."""
    assert rule.sums is not None
    arrays = [name for name, p in inspect.signature(rule.sums).parameters.items() if p.kind is not p.KEYWORD_ONLY]
    used = {i.argval for i in dis.get_instructions(rule.sums) if i.opname.startswith("LOAD_FAST")}
    return {*arrays} & used


def figure(value: float) -> float:
    return float(f"{value:.4g}")
