"""A character language model: what comes next in the documentation of Python.

Data: `pydoc_data.topics`, some 700,000 characters of prose that come with every Python.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg as tw

SOURCE = "the standard library's pydoc_data.topics"
LICENCE = "PSF-2.0"
EPOCHS = 4.0
SECONDS = 120.0
EXPECTED = {"bits": (1.5, 2.8)}


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


def bits(output: Tensor, target: Tensor) -> float:
    """Bits a character: the loss in base two."""
    return float(F.cross_entropy(output, target)) / math.log(2)


def task(width: int = 128, length: int = 64, characters: int = 200_000) -> tw.Task:
    """Make the task: `width` of embedding and memory, pieces of `length`, of the first `characters`."""
    from pydoc_data import topics

    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))[:characters]
    alphabet = sorted(set(text))
    code = {character: number for number, character in enumerate(alphabet)}
    codes = torch.tensor([code[character] for character in text])
    pieces = codes[: (len(codes) - 1) // length * length].view(-1, length)
    following = codes[1 : pieces.numel() + 1].view(-1, length)
    cut = int(0.9 * len(pieces))  # the end of the text is held out: neighbours overlap, random pieces would leak

    return tw.Task(
        model=lambda: Characters(len(alphabet), width),
        loss=F.cross_entropy,
        data=(pieces[:cut], following[:cut]),
        validation=(pieces[cut:], following[cut:]),
        metrics={"bits": bits},
    )
