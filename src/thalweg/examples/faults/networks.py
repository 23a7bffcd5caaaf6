"""The networks of the small programs, of every kind that people train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Callable[[], nn.Module]


def mlp(*widths: int, activation: Activation = nn.ReLU) -> nn.Sequential:
    """A perceptron, started as PyTorch starts it."""
    parts = [part for one, two in pairwise(widths) for part in (nn.Linear(one, two), activation())]
    return nn.Sequential(*parts[:-1])


def deep(inputs: int, outputs: int, depth: int = 8, width: int = 32, activation: Activation = nn.Tanh) -> nn.Sequential:
    """A deep perceptron without normalisation, started so that signals keep their size."""
    made = mlp(inputs, *[width] * depth, outputs, activation=activation)
    for layer in made:
        if isinstance(layer, nn.Linear):
            if activation is nn.ReLU:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.xavier_normal_(layer.weight, gain=5 / 3 if activation is nn.Tanh else 1.0)
            nn.init.zeros_(layer.bias)
    return made


def pictures(channels: int = 8, activation: Activation = nn.ReLU, eps: float = 1e-5) -> nn.Sequential:
    """Convolutions with batch normalisation, for 8 x 8 pixels in a row of 64."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels, eps=eps),
        activation(),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.BatchNorm2d(2 * channels, eps=eps),
        activation(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * 16, 10),
    )


class Turned(nn.Module):
    """Swaps the last two dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        """Swap them."""
        return x.transpose(1, 2)


def signals(channels: int = 12, activation: Activation = nn.ReLU, eps: float = 1e-5) -> nn.Sequential:
    """One-dimensional convolutions with batch normalisation, for 24 values."""
    return nn.Sequential(
        Turned(),
        nn.Conv1d(1, channels, 5, padding=2),
        nn.BatchNorm1d(channels, eps=eps),
        activation(),
        nn.Conv1d(channels, channels, 5, padding=2),
        nn.BatchNorm1d(channels, eps=eps),
        activation(),
        nn.AdaptiveMaxPool1d(4),
        nn.Flatten(),
        nn.Linear(4 * channels, 4),
    )


class Recurrent(nn.Module):
    """A recurrent layer over characters (a score for each place) or over values (one answer at the end)."""

    def __init__(self, kind: str, tokens: int, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width) if tokens else nn.Linear(1, width)
        makers = {"gru": nn.GRU, "lstm": nn.LSTM, "tanh": nn.RNN, "relu": nn.RNN}
        options = {"nonlinearity": kind} if kind in ("tanh", "relu") else {}
        self.memory = makers[kind](width, width, batch_first=True, **options)
        self.output = nn.Linear(width, outputs)
        self.at_each = bool(tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length) -> (batch, outputs, length), or (batch, length, 1) -> (batch, outputs)."""
        states, _ = self.memory(self.embedding(x))
        return self.output(states).transpose(1, 2) if self.at_each else self.output(states[:, -1])


class Attention(nn.Module):
    """Self-attention, causal or not; `sharpness` multiplies its scores."""

    def __init__(self, width: int, heads: int, causal: bool, sharpness: float) -> None:
        super().__init__()
        self.project, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.causal, self.sharpness = heads, causal, sharpness

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> the same shape."""
        batch, length, width = x.shape
        q, k, v = self.project(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.sharpness * q, k, v, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention and a perceptron, with residual connections; layer normalisation before each (`first`) or after it."""

    def __init__(
        self, width: int, causal: bool, first: bool, activation: Activation, eps: float, sharpness: float
    ) -> None:
        super().__init__()
        self.attention = Attention(width, 2, causal, sharpness)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), activation(), nn.Linear(2 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)])
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> the same shape."""
        for norm, part in zip(self.norms, (self.attention, self.mix), strict=True):
            x = x + part(norm(x)) if self.first else norm(x + part(x))
        return x


class Transformer(nn.Module):
    """Blocks over characters (a score for each place, causal, norms first) or over values (one answer, norms after)."""

    def __init__(
        self,
        tokens: int,
        outputs: int,
        length: int,
        *,
        width: int = 24,
        blocks: int = 2,
        activation: Activation = nn.GELU,
        eps: float = 1e-5,
        sharpness: float = 1.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width) if tokens else nn.Linear(1, width)
        self.places = nn.Parameter(0.1 * torch.randn(length, width))
        self.blocks = nn.Sequential(
            *(Block(width, bool(tokens), bool(tokens), activation, eps, sharpness) for _ in range(blocks))
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.output = nn.Linear(width, outputs)
        self.at_each = bool(tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length) -> (batch, outputs, length), or (batch, length, 1) -> (batch, outputs)."""
        states = self.norm(self.blocks(self.embedding(x) + self.places[: x.shape[1]]))
        return self.output(states).transpose(1, 2) if self.at_each else self.output(states.mean(1))


class Sums(nn.Module):
    """Embeddings of ids, added up, then a perceptron (one answer) or at each place (a score for each id)."""

    def __init__(self, tokens: int, outputs: int, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.layers = mlp(width, 32, outputs)
        self.at_each = outputs > 1

    def forward(self, x: Tensor) -> Tensor:
        """(batch, places) -> (batch, outputs, places), or (batch, 1)."""
        found = self.embedding(x)
        return self.layers(found).transpose(1, 2) if self.at_each else self.layers(found.sum(1))


# What is done to a fresh network, by which faults and traps are planted.


class Cut(nn.Module):
    """A network whose first parts are cut off from the gradient."""

    def __init__(self, network: nn.Sequential, after: int) -> None:
        super().__init__()
        self.network, self.after = network, after

    def forward(self, x: Tensor) -> Tensor:
        """Call the parts in turn."""
        return self.network[self.after :](self.network[: self.after](x).detach())


class Times(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return self.factor * x


class Standardised(nn.Module):
    """Brings each example to mean zero and deviation one; `eps` below the root keeps it finite where all values are alike."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(batch, …) -> the same shape."""
        rows = x.flatten(1)
        spread = (rows - rows.mean(1, keepdim=True)).square().mean(1, keepdim=True)
        return ((rows - rows.mean(1, keepdim=True)) / (spread + self.eps).sqrt()).view(x.shape)


class Branch(nn.Module):
    """A layer with a residual branch that begins at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = mlp(width, width, width)
        nn.init.zeros_(self.layers[-1].weight)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.layers[-1].bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) -> the same shape."""
        return x + self.layers(x)


class LowRank(nn.Module):
    """A frozen layer with a trained correction of low rank, which begins at zero (LoRA: Hu et al. 2021)."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, outputs)."""
        return self.layer(x) + self.up(self.down(x))


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Give the weights of two dimensions and more, embeddings left out, in the model's order."""
    embedded = {id(p) for part in model.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    return [p for p in model.parameters() if p.dim() > 1 and id(p) not in embedded]


def scaled(model: nn.Module, factor: float, hidden: bool = True) -> nn.Module:
    """Multiply the weights, but for the last matrix where `hidden`."""
    found = matrices(model)
    with torch.no_grad():
        for weight in found[:-1] if hidden else found:
            weight.mul_(factor)
    return model


def switched_off(model: nn.Module, share: float, bias: float = -10.0) -> nn.Module:
    """Lower the biases of a share of the units that feed each activation, or of the normalisation between."""
    with torch.no_grad():
        for parts in _sequences(model):
            for before, after in pairwise(parts):
                if isinstance(after, nn.ReLU) and isinstance(getattr(before, "bias", None), nn.Parameter):
                    biases = cast(Tensor, before.bias)
                    biases[: round(share * len(biases))] = bias
    return model


def _sequences(model: nn.Module) -> Sequence[Sequence[nn.Module]]:
    return [list(part) for part in model.modules() if isinstance(part, nn.Sequential)]
