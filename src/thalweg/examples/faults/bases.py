"""The healthy programs that faults are planted in: a source and a network, and what is usual for them.

The two halves share neither a source of data nor a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg import schedule
from thalweg.examples.faults import networks, sources
from thalweg.examples.faults.program import Half, Program, Recipe, Rule
from thalweg.examples.faults.sources import LENGTH, TOKENS, Examples

RULES: tuple[Rule, ...] = ("adamw", "adam", "momentum")
STEPS = 300


@dataclass(frozen=True)
class Base:
    """A source of data with a network.

    Arguments:
        make: makes the network; what else it takes is for faults.
        adam: the learning rate of AdamW and Adam. `momentum`: that of SGD with momentum.
    """

    source: str
    network: str
    half: Half
    data: Callable[[], Examples]
    make: Callable[..., nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    adam: float = 3e-3
    momentum: float = 0.05
    batch_size: int = 32
    steps: int = STEPS

    @property
    def name(self) -> str:
        """Source and network."""
        return f"{self.source}/{self.network}"

    @property
    def classifies(self) -> bool:
        """Whether targets are classes."""
        return self.loss is F.cross_entropy

    def recipe(self, rule: Rule) -> Recipe:
        """Give what is usual: AdamW with a warm-up and a cosine, Adam at a constant rate, SGD at one that falls in a line."""
        schedules = {
            "adamw": schedule.cosine(total=self.steps, warmup=self.steps // 20),
            "adam": schedule.constant(total=self.steps),
            "momentum": schedule.linear(total=self.steps),
        }
        return Recipe(
            data=self.data,
            model=self.make,
            loss=self.loss,
            rule=rule,
            learning_rate=self.momentum if rule == "momentum" else self.adam,
            schedule=schedules[rule],
            batch_size=self.batch_size,
            steps=self.steps,
            weight_decay=0.01 if rule == "adamw" else 0.0,
        )

    def program(self, rule: Rule, *rest: str, recipe: Recipe, **more: object) -> Program:
        """Give a program of this base."""
        name = "/".join((self.name, rule, *rest))
        causes = frozenset(more.pop("causes", ()))  # pyright: ignore[reportArgumentType]
        return Program(name, self.source, self.network, self.half, causes, recipe, **more)  # pyright: ignore[reportArgumentType]


def _autoencoder(activation: networks.Activation = nn.ReLU) -> nn.Module:
    return networks.mlp(64, 32, 12, 32, 64, activation=activation)


def _narrow(activation: networks.Activation = nn.Tanh) -> nn.Module:
    return networks.mlp(16, 24, 6, 24, 16, activation=activation)


def alphabet() -> int:
    """Give how many characters there are."""
    found = sources.characters()
    return int(torch.cat([found.x, found.y, found.held_x, found.held_y]).max()) + 1


def _gru() -> nn.Module:
    return networks.Recurrent("gru", alphabet(), alphabet())


def _causal(**options: object) -> nn.Module:
    return networks.Transformer(alphabet(), alphabet(), LENGTH, **options)  # pyright: ignore[reportArgumentType]


def _lstm(kind: str = "lstm") -> nn.Module:
    return networks.Recurrent(kind, 0, 1)


def _encoder(**options: object) -> nn.Module:
    return networks.Transformer(0, 1, LENGTH, **options)  # pyright: ignore[reportArgumentType]


def _perceptron(activation: networks.Activation = nn.ReLU) -> nn.Module:
    return networks.mlp(64, 48, 48, 10, activation=activation)


def _smooth(activation: networks.Activation = nn.GELU) -> nn.Module:
    return networks.mlp(16, 64, 64, 26, activation=activation)


def _deep_tanh(activation: networks.Activation = nn.Tanh) -> nn.Module:
    return networks.deep(6, 1, activation=activation)


def _deep_relu(activation: networks.Activation = nn.ReLU) -> nn.Module:
    return networks.deep(10, 1, depth=7, activation=activation)


def _pairs() -> nn.Module:
    return networks.Sums(TOKENS, TOKENS)


def _clicks() -> nn.Module:
    return networks.Sums(TOKENS, 1)


BASES: Mapping[str, Base] = {
    base.name: base
    for base in (
        Base("digits", "mlp", "development", sources.digits, _perceptron, F.cross_entropy, 0.01, 0.1),
        Base("digits", "cnn", "development", sources.digits, networks.pictures, F.cross_entropy, 0.01, 0.05),
        Base("waves", "deep", "development", sources.waves, _deep_tanh, F.mse_loss, 5e-3, 0.01),
        Base("characters", "gru", "development", sources.characters, _gru, F.cross_entropy, 0.01, 0.7),
        Base("digits", "autoencoder", "development", sources.digit_pictures, _autoencoder, F.mse_loss, 0.01, 1.0),
        Base("characters", "transformer", "development", sources.characters, _causal, F.cross_entropy, 0.01, 0.3),
        Base("letters", "smooth-mlp", "held out", sources.few_letters, _smooth, F.cross_entropy, 0.01, 0.1),
        Base("pulses", "cnn-1d", "held out", sources.pulses, networks.signals, F.cross_entropy, 0.01, 0.05),
        Base("friedman", "deep-relu", "held out", sources.friedman, _deep_relu, F.mse_loss, 0.01, 0.02),
        Base("echoes", "lstm", "held out", sources.echoes, _lstm, F.mse_loss, 0.01, 0.1),
        Base("letters", "narrow-autoencoder", "held out", sources.letter_measurements, _narrow, F.mse_loss, 0.01, 0.3),
        Base("echoes", "encoder", "held out", sources.echoes, _encoder, F.mse_loss, 3e-3, 0.02),
    )
}
"""By name."""
SPARSE: Mapping[str, Base] = {
    base.name: base
    for base in (
        Base(
            "characters", "embedded-pairs", "development", sources.character_pairs, _pairs, F.cross_entropy, 0.02, 0.3
        ),
        Base("clicks", "embedded-sets", "held out", sources.clicks, _clicks, F.mse_loss, 0.02, 0.05),
    )
}
"""Those with sparse embeddings, for healthy programs only."""
