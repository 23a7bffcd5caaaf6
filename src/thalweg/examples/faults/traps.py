"""Healthy programs: the usual ones, and traps that look like a fault and are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import nn

from thalweg import schedule
from thalweg.examples.faults import networks
from thalweg.examples.faults.bases import BASES, RULES, SPARSE, Base
from thalweg.examples.faults.planting import PLAIN, mislabelled
from thalweg.examples.faults.program import Loop, Program, Recipe, Rule
from thalweg.examples.faults.sources import Examples
from thalweg.records.weights import model_state

ALL = tuple(BASES)
NOISY = ("digits/mlp", "waves/deep", "digits/cnn", "letters/smooth-mlp", "friedman/deep-relu", "echoes/lstm")


@dataclass(frozen=True)
class Trap:
    """What looks like a fault, in several bases; `rules` take turns."""

    kind: str
    make: Callable[[Recipe, Base], Recipe]
    bases: Sequence[str] = ALL
    rules: Sequence[Rule] = RULES
    own_loop_only: bool = False


def healthy_programs() -> Iterator[Program]:
    """Give all programs without a fault."""
    for base in (*BASES.values(), *SPARSE.values()):
        for rule in RULES:
            yield base.program(rule, "healthy", recipe=base.recipe(rule))
    for number, trap in enumerate(TRAPS):
        for place, name in enumerate(trap.bases):
            base, rule = BASES[name], trap.rules[(number + place) % len(trap.rules)]
            recipe = trap.make(base.recipe(rule), base)
            yield base.program(rule, "trap", trap.kind, recipe=recipe, own_loop_only=trap.own_loop_only)


def batch_of_one(recipe: Recipe, base: Base) -> Recipe:
    """One example at a time, at a rate that suits that; a tenth of the targets are wrong."""
    return replace(
        recipe,
        batch_size=1,
        learning_rate=0.3 * recipe.learning_rate,
        data=lambda: mislabelled(base.data(), 0.1),
        steps=1500,
        schedule=schedule.linear(total=1500),
    )


def noise_floor(recipe: Recipe, base: Base) -> Recipe:
    """A run that has learnt what there is, and stands where the noise of its targets is."""

    def data() -> Examples:
        found = base.data()
        if base.classifies:
            return mislabelled(found, 0.5)
        return found._replace(y=found.y + torch.randn(found.y.shape, generator=torch.Generator().manual_seed(9)))

    rate = 0.5 * recipe.learning_rate
    return replace(recipe, data=data, learning_rate=rate, steps=600, schedule=schedule.constant(total=600))


def curriculum(recipe: Recipe, base: Base) -> Recipe:
    """Easy examples first: in mid-run the loss is lifted for good, because the targets then hold noise."""

    def data() -> Examples:
        found, times = base.data(), 8
        noisy = noisy_targets(found)
        x = torch.cat([found.x] * times)
        return found._replace(x=x, y=torch.cat([found.y] * (times // 2) + [noisy.y] * (times // 2)))

    def noisy_targets(found: Examples) -> Examples:
        if base.classifies:
            return mislabelled(found, 0.3)
        noise = 0.5 * torch.randn(found.y.shape, generator=torch.Generator().manual_seed(10))
        return found._replace(y=found.y + noise)

    return replace(recipe, data=data, shuffle=False)


def late(recipe: Recipe, base: Base) -> Recipe:
    """Sigmoids in several layers, which learn nothing for a hundred steps, and then do."""

    def make() -> nn.Module:
        found = base.data()
        outputs = int(found.y.max()) + 1 if base.classifies else found.y.shape[-1]
        return networks.mlp(found.x.shape[-1], 48, 48, 48, outputs, activation=nn.Sigmoid)

    return replace(recipe, model=make, steps=500, schedule=schedule.cosine(total=500, warmup=20))


def one_cycle(recipe: Recipe, base: Base) -> Recipe:
    """A rate that rises to twice the usual peak and falls."""
    return replace(recipe, learning_rate=2 * recipe.learning_rate, schedule=schedule.one_cycle(total=recipe.steps))


def brisk(recipe: Recipe, base: Base) -> Recipe:
    """A constant rate half as high again."""
    return replace(recipe, learning_rate=1.5 * recipe.learning_rate, schedule=schedule.constant(total=recipe.steps))


def warm(recipe: Recipe, base: Base) -> Recipe:
    """A warm-up of two fifths of the run."""
    return replace(recipe, schedule=schedule.linear(total=recipe.steps, warmup=2 * recipe.steps // 5))


def tail(recipe: Recipe, base: Base) -> Recipe:
    """A cosine whose last tenth hardly moves."""
    return replace(recipe, schedule=schedule.cosine(total=recipe.steps))


def branches(recipe: Recipe, base: Base) -> Recipe:
    """Residual branches that begin at zero."""

    def make() -> nn.Module:
        model = base.make()
        assert isinstance(model, nn.Sequential)
        *before, last = model
        assert isinstance(last, nn.Linear)
        return nn.Sequential(*before, networks.Branch(last.in_features), last)

    return replace(recipe, model=make)


@cache
def pretrained(name: str) -> dict[str, torch.Tensor]:
    """Train a base on the first half of its examples; gives the weights."""
    base = BASES[name]
    recipe = replace(base.recipe("adamw"), data=partial(_half, base, first=True))
    loop = Loop(recipe, seed=1000)
    for batch in loop.batches():
        loop.loss(batch).backward()
        loop.optimizer.step()
        loop.schedule.step()
        loop.optimizer.zero_grad()
    return {key: value.clone() for key, value in model_state(loop.model).items()}


def _half(base: Base, first: bool) -> Examples:
    found = base.data()
    half = len(found.x) // 2
    chosen = slice(half) if first else slice(half, None)
    return found._replace(x=found.x[chosen], y=found.y[chosen])


def _continued(base: Base) -> nn.Module:
    model = base.make()
    model.load_state_dict(pretrained(base.name))
    return model


def fine_tuning(recipe: Recipe, base: Base) -> Recipe:
    """A trained network goes on with other examples at a thirtieth of the rate."""
    rate = recipe.learning_rate / 30
    return replace(recipe, model=partial(_continued, base), data=partial(_half, base, first=False), learning_rate=rate)


def frozen_trunk(recipe: Recipe, base: Base) -> Recipe:
    """All but the last layer of a trained network is frozen; the last one begins anew, on other examples."""

    def make() -> nn.Module:
        model, fresh = _continued(base), base.make()
        *trunk, weight, bias = model.parameters()
        for parameter in trunk:
            parameter.requires_grad_(False)
        with torch.no_grad():
            for old, new in zip((weight, bias), list(fresh.parameters())[-2:], strict=True):
                old.copy_(new)
        return model

    return replace(recipe, model=make, data=partial(_half, base, first=False))


def low_rank(recipe: Recipe, base: Base) -> Recipe:
    """Corrections of low rank to a trained, frozen network, on other examples with other noise."""

    def make() -> nn.Module:
        model = _continued(base)
        assert isinstance(model, nn.Sequential)
        return nn.Sequential(*(networks.LowRank(part) if isinstance(part, nn.Linear) else part for part in model))

    return replace(recipe, model=make, data=partial(_half, base, first=False), learning_rate=0.3 * recipe.learning_rate)


TRAPS: tuple[Trap, ...] = (
    Trap("batch-of-one", batch_of_one, NOISY[:2] + NOISY[3:]),
    Trap("warm-up", warm, ALL[::2]),
    Trap("cosine-tail", tail, ALL[1::2], ("momentum", "adam")),
    Trap("one-cycle", one_cycle, ALL),
    Trap("brisk", brisk, ALL, ("momentum", "adamw", "adam")),
    Trap("noise-floor", noise_floor, NOISY),
    Trap("zero-branches", branches, PLAIN),
    Trap("low-rank", low_rank, PLAIN, ("adamw", "adam")),
    Trap("frozen-trunk", frozen_trunk, ALL[::2]),
    Trap("curriculum", curriculum, NOISY, ("adam", "adamw")),
    Trap("late", late, PLAIN, ("adamw", "adam")),
    Trap("fine-tuning", fine_tuning, ALL[1::2]),
    Trap("skipped-steps", lambda recipe, base: replace(recipe, not_taken=6), ALL[::3], own_loop_only=True),
)
