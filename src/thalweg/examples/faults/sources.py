"""What the small programs learn: real data that are on the machine anyway, and closed forms drawn from a fixed seed.

Inputs are one tensor, targets another; 1,200 examples to learn from at most and 300 held out, so that a run is over in seconds.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.examples import chars, letters
from thalweg.examples.data import import_data_package, split

TRAINED, HELD = 1200, 300  # examples, at most
LENGTH = 16  # characters of a row, and values of a series
TOKENS = 400  # ids of `clicks`


class Examples(NamedTuple):
    """Examples to learn from, and those that are held out."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor


@cache
def digits() -> Examples:
    """Handwritten digits, 8 x 8 pixels: which of ten."""
    pixels, labels = import_data_package("sklearn.datasets").load_digits(return_X_y=True)
    train, held = split(len(pixels), 0.2, labels)
    return _chosen((pixels / 16).astype(np.float32), labels.astype(np.int64), train, held)


@cache
def digit_pictures() -> Examples:
    """The same digits, whose pixels are the targets too."""
    found = digits()
    return Examples(found.x, found.x, found.held_x, found.held_x)


@cache
def characters() -> Examples:
    """Rows of 16 characters of Python's documentation, and the same rows one character later."""
    text = "\n\n".join(chars.paragraphs())[: (TRAINED + HELD) * LENGTH * 2]
    alphabet = "".join(sorted(set(text)))
    x, y = chars.pieces(text, alphabet, LENGTH)
    cut = len(x) * TRAINED // (TRAINED + HELD)
    return _chosen(x.numpy(), y.numpy(), np.arange(cut), np.arange(cut, len(x)))


@cache
def character_pairs() -> Examples:
    """The same text in pairs of characters, most of which are rare: which pair comes next."""
    found = characters()
    base = int(found.x.max()) + 1

    def pairs(rows: Tensor) -> Tensor:
        return rows[:, 0::2] * base + rows[:, 1::2]

    x, held = pairs(found.x), pairs(found.held_x)
    common = torch.bincount(x.flatten(), minlength=base * base).argsort(descending=True)[: TOKENS - 1]
    codes = torch.full((base * base,), TOKENS - 1)
    codes[common] = torch.arange(TOKENS - 1)
    return Examples(codes[x[:, :-1]], codes[x[:, 1:]], codes[held[:, :-1]], codes[held[:, 1:]])


@cache
def waves() -> Examples:
    """A smooth function of six numbers with a little noise: one number, of variance one."""
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.rand(TRAINED + HELD, 6, generator=generator) - 1
    y = torch.sin(3 * x[:, 0] * x[:, 1]) + x[:, 2] ** 2 + torch.cos(2 * x[:, 3] + x[:, 4]) - 0.5 * x[:, 5]
    return _of_numbers(x, y, generator, noise=0.1)


@cache
def friedman() -> Examples:
    """Friedman's first function of ten numbers, of which five matter."""
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(TRAINED + HELD, 10, generator=generator)
    y = 10 * torch.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return _of_numbers(2 * x - 1, y, generator, noise=0.1)


@cache
def few_letters() -> Examples:
    """Which capital letter it is, from 16 standardised measurements."""
    made = letters.task()
    return _chosen(made.data[0], made.data[1], np.arange(len(made.data[0])), np.empty(0, dtype=int), made.validation)


@cache
def letter_measurements() -> Examples:
    """The same measurements, which are the targets too."""
    found = few_letters()
    return Examples(found.x, found.x, found.held_x, found.held_x)


@cache
def echoes() -> Examples:
    """Damped oscillations of unknown frequency: the next value after 16."""
    generator = torch.Generator().manual_seed(3)
    count = TRAINED + HELD
    times = torch.arange(LENGTH + 1)
    frequency, phase, damping = (torch.rand(count, 1, generator=generator) for _ in range(3))
    series = torch.exp(-0.06 * damping * times) * torch.sin((0.3 + 1.2 * frequency) * times + 2 * math.pi * phase)
    series = series + 0.05 * torch.randn(series.shape, generator=generator)
    x, y = series[:, :LENGTH, None], series[:, LENGTH:] / series.std()
    return Examples(x[:TRAINED], y[:TRAINED], x[TRAINED:], y[TRAINED:])


@cache
def pulses() -> Examples:
    """Which of four shapes lies somewhere in a noisy signal of 24 values."""
    generator = torch.Generator().manual_seed(4)
    count, length, width = TRAINED + HELD, 24, 8
    t = torch.linspace(0, 1, width)
    shapes = torch.stack([torch.sin(2 * math.pi * t), 2 * t - 1, (t > 0.5).float() * 2 - 1, torch.sin(4 * math.pi * t)])
    y = torch.randint(0, 4, (count,), generator=generator)
    places = torch.randint(0, length - width, (count,), generator=generator)
    x = 0.3 * torch.randn(count, length, 1, generator=generator)
    for row, (label, place) in enumerate(zip(y.tolist(), places.tolist(), strict=True)):
        x[row, place : place + width, 0] += shapes[label]
    return Examples(x[:TRAINED], y[:TRAINED], x[TRAINED:], y[TRAINED:])


@cache
def clicks() -> Examples:
    """Sets of six ids out of 400, frequent as in natural language: the sum of what each is worth."""
    generator = torch.Generator().manual_seed(5)
    weights = 1 / torch.arange(1, TOKENS + 1).float()
    x = torch.multinomial(weights.expand(TRAINED + HELD, -1), 6, generator=generator)
    return _of_numbers(x, torch.randn(TOKENS, generator=generator)[x].sum(1), generator, noise=0.1)


def _of_numbers(x: Tensor, y: Tensor, generator: torch.Generator, noise: float) -> Examples:
    y = (y - y.mean()) / y.std() + noise * torch.randn(len(y), generator=generator)
    y = y[:, None]
    return Examples(x[:TRAINED], y[:TRAINED], x[TRAINED:], y[TRAINED:])


def _chosen(x: Any, y: Any, train: Any, held: Any, held_out: tuple[Any, Any] | None = None) -> Examples:
    """Choose as many examples as are used, in an order that is always the same."""
    random = np.random.default_rng(0)
    train, held = random.permutation(train)[:TRAINED], random.permutation(held)[:HELD]
    held_x, held_y = (
        (x[held], y[held]) if held_out is None else (part[:: len(part) // HELD][:HELD] for part in held_out)
    )
    return Examples(*(torch.as_tensor(np.ascontiguousarray(part)) for part in (x[train], y[train], held_x, held_y)))
