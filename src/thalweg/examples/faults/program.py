"""A small training program as a value: the same one for `tw.train` and for a loop of one's own with `torch.optim`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import thalweg as tw
from thalweg.examples.faults.sources import Examples
from thalweg.schedule import Schedule

Half = Literal["development", "held out"]
Rule = Literal["adamw", "adam", "momentum"]


@dataclass(frozen=True)
class Recipe:
    """What a program is made of.

    Arguments:
        data: the examples.
        model: makes a fresh network.
        loss: `loss(output, target)`, a scalar.
        judge: the loss that held-out examples are judged by, where that is another one.
        rule: "adamw", "adam" or "momentum" (0.9).
        learning_rate: its peak, which the `schedule` multiplies.
        schedule: with its lengths in steps.
        constants: of the rule, named as in a `Plan`.
        shuffle: whether each pass has a new order.
        by_row: whether the examples come from a `Dataset` one by one, in which nobody looks before training.
        stepped: the parameters that a loop of one's own gives to its optimiser.
        not_taken: the first steps that a loop of one's own does not take, as under a gradient scaler.
    """

    data: Callable[[], Examples]
    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    rule: Rule
    learning_rate: float
    schedule: Schedule
    judge: Callable[[Tensor, Tensor], Tensor] | None = None
    batch_size: int = 32
    steps: int = 300
    weight_decay: float = 0.0
    constants: Mapping[str, float] = field(default_factory=dict[str, float])
    shuffle: bool = True
    by_row: bool = False
    stepped: Callable[[nn.Module], list[nn.Parameter]] = lambda model: [
        p for p in model.parameters() if p.requires_grad
    ]
    not_taken: int = 0


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """The training examples of a program, one by one."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.examples.x[index], self.examples.y[index]


class Batch(NamedTuple):
    """The examples of one step, and their indices in the data."""

    indices: Tensor
    x: Tensor
    y: Tensor


class Loop:
    """What a loop of one's own needs of a program: `model`, `optimizer`, `schedule` and the batches.

    >>> import thalweg.examples.faults as faults
    >>> loop = faults.find("waves/deep/adamw/healthy").loop()
    >>> for batch in loop.batches():
    ...     loss = loop.loss(batch)
    ...     loss.backward()
    ...     loop.optimizer.step()
    ...     loop.schedule.step()
    ...     loop.optimizer.zero_grad()
    >>> loop.held_out_loss() < 0.5
    True
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe, self.seed, self.examples = recipe, seed, recipe.data()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = recipe.model()
        parameters, rate, decay = recipe.stepped(self.model), recipe.learning_rate, recipe.weight_decay
        self.optimizer: torch.optim.Optimizer
        if recipe.rule == "momentum":
            self.optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
        else:
            kind = torch.optim.AdamW if recipe.rule == "adamw" else torch.optim.Adam
            betas = (0.9, recipe.constants.get("beta2", 0.999))
            self.optimizer = kind(parameters, lr=rate, betas=betas, weight_decay=decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, partial(_factor, recipe.schedule))

    def batches(self) -> Iterator[Batch]:
        """Give the batches of all steps."""
        x, y, size = self.examples.x, self.examples.y, self.recipe.batch_size
        generator, rows = torch.Generator().manual_seed(self.seed), torch.arange(0)
        for _ in range(self.recipe.steps):
            if len(rows) < size:
                rows = torch.randperm(len(x), generator=generator) if self.recipe.shuffle else torch.arange(len(x))
            chosen, rows = rows[:size], rows[size:]
            yield Batch(chosen, x[chosen], y[chosen])

    def loss(self, batch: Batch) -> Tensor:
        """Give the loss of a batch."""
        return self.recipe.loss(self.model(batch.x), batch.y)

    def held_out_loss(self) -> float:
        """Give the loss of the held-out examples, in evaluation mode; the model's mode is then as before."""
        return judged(self.recipe, self.model)


def judged(recipe: Recipe, model: nn.Module) -> float:
    """Give a model's loss on a program's held-out examples."""
    examples, was = recipe.data(), model.training
    model.eval()
    try:
        with torch.no_grad():
            return float((recipe.judge or recipe.loss)(model(examples.held_x), examples.held_y))
    finally:
        model.train(was)


def _factor(schedule: Schedule, step: int) -> float:
    return schedule.factor(step)


@dataclass(frozen=True)
class Program:
    """A small training program, faulty or healthy.

    Arguments:
        name: "source/network/rule/fault/strength"; of a healthy one "source/network/rule/healthy" or ".../trap/kind".
        source: the data that it learns from. `network`: the kind of network. `half`: of the suite.
        causes: names of the causes that are true of it, as `thalweg.watch.causes` lists them; none of a healthy program.
        recipe: what it is made of.
        healthy: the same without the fault.
        own_loop_only: whether `tw.train` cannot be given it.
        seed: of its initial weights and order.
    """

    name: str
    source: str
    network: str
    half: Half
    causes: frozenset[str]
    recipe: Recipe
    healthy: Recipe | None = None
    own_loop_only: bool = False
    seed: int = 0

    def __repr__(self) -> str:
        return f"<Program {self.name}, seed {self.seed}: {', '.join(sorted(self.causes)) or 'healthy'}>"

    @property
    def planted(self) -> str:
        """The cause that was planted; "" of a healthy program."""
        return self.name.split("/")[3] if self.causes else ""

    @property
    def twin(self) -> Program:
        """The same program without the fault; a healthy one is its own."""
        if self.healthy is None:
            return self
        return replace(
            self, name=f"{self.name}/twin", causes=frozenset(), recipe=self.healthy, healthy=None, own_loop_only=False
        )

    def with_seed(self, seed: int) -> Program:
        """Give the same program from another seed."""
        return replace(self, seed=seed)

    def task(self) -> tw.Task:
        """Give the task for `tw.train`."""
        recipe = self.recipe
        examples = recipe.data()
        return tw.Task(
            model=recipe.model,
            loss=recipe.loss,
            data=Rows(examples) if recipe.by_row else (examples.x, examples.y),
            validation=(examples.held_x, examples.held_y),
            name=self.name.replace("/", "-"),
        )

    def plan(self) -> tw.Plan:
        """Give the plan for `tw.train`; the model ends with its last weights."""
        recipe = self.recipe
        return tw.Plan(
            rule=recipe.rule,
            learning_rate=recipe.learning_rate,
            schedule=recipe.schedule,
            batch_size=recipe.batch_size,
            steps=recipe.steps,
            weight_decay=recipe.weight_decay,
            constants=recipe.constants,
            shuffle=recipe.shuffle,
            drop_last=True,
            validate_every=max(1, recipe.steps // 10),
            keep="last",
            seed=self.seed,
        )

    def loop(self) -> Loop:
        """Give what a loop of one's own needs."""
        return Loop(self.recipe, self.seed)
