"""Text: which character comes next in the documentation of Python? A small recurrent network.

Data: `pydoc_data.topics`, the pages behind Python's own `help()`: 370,000 characters (each Python version has its own).
Licence: PSF-2.0. To beat: the shares of the characters alone, 4.7 bits per character, and of pairs of them, 3.4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg as tw
from thalweg.errors import TaskError

SOURCE = "the standard library's pydoc_data.topics"
LICENCE = "PSF-2.0"
EPOCHS = 3.0
SECONDS = 80.0
EXPECTED = {"bits": (1.95, 2.35)}


class Characters(nn.Module):
    """Embedding, one GRU, and a score for each character of the alphabet."""

    def __init__(self, alphabet: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.scores = nn.Linear(width, alphabet)

    def forward(self, characters: Tensor) -> Tensor:
        """Score the next character at every place: (batch, length) -> (batch, alphabet, length)."""
        states, _ = self.memory(self.embedding(characters))
        return self.scores(states).transpose(1, 2)


def bits(scores: Tensor, following: Tensor) -> float:
    """Bits per character: the loss in base two. Knowing nothing of 103 characters takes 6.7."""
    return float(F.cross_entropy(scores, following)) / math.log(2)


def paragraphs() -> list[str]:
    """Give the paragraphs of the text in order, each once, since a fifth of them is on several pages."""
    from pydoc_data.topics import topics

    return list(dict.fromkeys("\n\n".join(topics[page] for page in sorted(topics)).split("\n\n")))


def pieces(text: str, alphabet: str, length: int) -> tuple[Tensor, Tensor]:
    """Cut a text into rows of `length` characters, and the same rows one character later; a short rest is dropped.

    >>> pieces("abacab", "abc", 2)
    (tensor([[0, 1],
            [0, 2]]), tensor([[1, 0],
            [2, 0]]))
    """
    codes = torch.tensor([alphabet.index(character) for character in text])
    rows = (len(codes) - 1) // length
    if rows < 1:
        raise TaskError(f"length is {length}, but the text has only {len(text)} characters. Give a shorter one.")
    return codes[: rows * length].view(rows, length), codes[1 : rows * length + 1].view(rows, length)


def task(width: int = 128, length: int = 64, held_out: float = 0.1) -> tw.Task:
    """Make the task: layers of `width` units, rows of `length` characters, the last share of the text held out."""
    if not 0 < held_out < 1:
        raise TaskError(f"held_out is {held_out}, but it is a share between 0 and 1, such as 0.1.")
    text = paragraphs()
    alphabet = "".join(sorted(set("\n\n".join(text))))
    cut = round((1 - held_out) * len(text))  # the end, not rows at random: neighbouring rows are too much alike

    return tw.Task(
        model=lambda: Characters(len(alphabet), width),
        loss=F.cross_entropy,
        data=pieces("\n\n".join(text[:cut]), alphabet, length),
        validation=pieces("\n\n".join(text[cut:]), alphabet, length),
        metrics={"bits": bits},
    )
