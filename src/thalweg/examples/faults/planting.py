"""The faults: what each does to a healthy program. Each gives the healthy twin too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg import schedule
from thalweg.examples.faults import networks
from thalweg.examples.faults.bases import BASES, RULES, Base
from thalweg.examples.faults.program import Program, Recipe, Rule
from thalweg.examples.faults.sources import Examples

FIGURES = ("digits/mlp", "digits/cnn", "waves/deep", "digits/autoencoder")
FIGURES_HELD = (
    "letters/smooth-mlp",
    "pulses/cnn-1d",
    "friedman/deep-relu",
    "echoes/lstm",
    "letters/narrow-autoencoder",
)
OF_NUMBERS = FIGURES + FIGURES_HELD  # bases whose inputs are real numbers, which can be spoilt; tokens cannot
PLAIN = (
    "digits/mlp",
    "waves/deep",
    "digits/autoencoder",
    "letters/smooth-mlp",
    "friedman/deep-relu",
    "letters/narrow-autoencoder",
)
IN_A_ROW = ("digits/cnn", "pulses/cnn-1d", *PLAIN)  # networks that are an `nn.Sequential`
CLASSES = ("digits/mlp", "digits/cnn", "characters/gru", "letters/smooth-mlp", "pulses/cnn-1d")
SHIFTED = (*OF_NUMBERS, "echoes/encoder")
ALL = tuple(BASES)

Planted = tuple[Recipe, Recipe]  # with the fault, and without
Plant = Callable[[Recipe, Base], Planted]


@dataclass(frozen=True)
class Fault:
    """A fault that is planted in several programs.

    Arguments:
        cause: the name of its cause. `strength`: tells several of one cause apart.
        plant: gives the faulty recipe and its healthy twin.
        bases: names of those that it is planted in. `rules`: which take turns from base to base.
        also: further causes that are true of it.
        own_loop_only: whether `tw.train` cannot be given it.
    """

    cause: str
    strength: str
    plant: Plant
    bases: Sequence[str] = ALL
    rules: Sequence[Rule] = RULES
    also: Sequence[str] = ()
    own_loop_only: bool = False


def planted_programs() -> Iterator[Program]:
    """Give all programs with a fault, whether or not it does enough harm."""
    for number, fault in enumerate(FAULTS):
        for place, name in enumerate(fault.bases):
            base = BASES[name]
            rule = fault.rules[(number + place) % len(fault.rules)]
            faulty, healthy = fault.plant(base.recipe(rule), base)
            yield base.program(
                rule,
                fault.cause,
                fault.strength,
                recipe=faulty,
                causes={fault.cause, *fault.also},
                healthy=healthy,
                own_loop_only=fault.own_loop_only,
            )


# Rates, schedules, decay


def rate_times(adam: float, momentum: float) -> Plant:
    """Multiply the learning rate by a factor that suits the rule."""

    def plant(recipe: Recipe, base: Base) -> Planted:
        factor = momentum if recipe.rule == "momentum" else adam
        return replace(recipe, learning_rate=factor * recipe.learning_rate), recipe

    return plant


def without_warmup(factor: float) -> Plant:
    """Train at a brisk rate, which takes a warm-up of a quarter of the run, without any."""

    def plant(recipe: Recipe, base: Base) -> Planted:
        rate, steps = factor * recipe.learning_rate, recipe.steps
        warm = replace(recipe, learning_rate=rate, schedule=schedule.linear(total=steps, warmup=steps // 4))
        return replace(warm, schedule=schedule.linear(total=steps)), warm

    return plant


def ended_after(share: float) -> Plant:
    """Let the schedule come to its end after a share of the run."""

    def plant(recipe: Recipe, base: Base) -> Planted:
        whole = replace(recipe, schedule=schedule.linear(total=recipe.steps))
        return replace(recipe, schedule=schedule.linear(total=round(share * recipe.steps))), whole

    return plant


def decay_of(per_step: float) -> Plant:
    """Set the decay so that at the full rate it takes this share of a weight in each step; of Adam, which couples it, as large as
    a usual gradient."""

    def plant(recipe: Recipe, base: Base) -> Planted:
        decay = per_step / recipe.learning_rate if recipe.rule != "adam" else 10 * per_step
        return replace(recipe, weight_decay=decay), recipe

    return plant


def shifted(share: float, rate: float, steps: int) -> Plant:
    """Make the gradients a thousand times as large after a share of the run, under a second moment that remembers all steps."""

    def plant(recipe: Recipe, base: Base) -> Planted:
        def data() -> Examples:
            found = base.data()
            times = -(-steps * recipe.batch_size // len(found.x))
            x = found.x.repeat(times, *[1] * (found.x.dim() - 1))
            y = found.y.repeat(times, *[1] * (found.y.dim() - 1))
            factors = torch.ones(len(x))
            factors[: int(share * steps) * recipe.batch_size] = 1e-3
            if base.classifies or found.x is found.y:
                x = x * factors.view(-1, *[1] * (x.dim() - 1))
            if y.is_floating_point():
                y = y * factors.view(-1, *[1] * (y.dim() - 1))
            return found._replace(x=x, y=y)

        flat = replace(
            recipe,
            data=data,
            shuffle=False,
            learning_rate=rate * recipe.learning_rate,
            schedule=schedule.constant(total=steps),
            steps=steps,
        )
        return replace(flat, constants={"beta2": 0.99999}), replace(flat, constants={"beta2": 0.95})

    return plant


def batch_of(size: int, noise: float) -> Plant:
    """Train on batches of very few examples, of which a share has wrong targets."""

    def plant(recipe: Recipe, base: Base) -> Planted:
        noisy = replace(
            recipe, data=lambda: mislabelled(base.data(), noise), schedule=schedule.constant(total=recipe.steps)
        )
        return replace(noisy, batch_size=size), noisy

    return plant


# Data


def mislabelled(examples: Examples, share: float, seed: int = 0) -> Examples:
    """Give a share of the training examples the targets of others."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(examples.y), generator=generator)[: round(share * len(examples.y))]
    y = examples.y.clone()
    y[rows] = examples.y[rows.roll(1)]
    return examples._replace(y=y)


def spoilt(count: int, change: Callable[[Examples, Tensor], Examples], seed: int = 7) -> Callable[[Examples], Examples]:
    """Change so many of the training examples, spread over the data."""

    def spoil(examples: Examples) -> Examples:
        rows = torch.randperm(len(examples.x), generator=torch.Generator().manual_seed(seed))[:count]
        return change(examples._replace(x=examples.x.clone(), y=examples.y.clone()), rows)

    return spoil


def with_data(change: Callable[[Examples], Examples], **more: object) -> Plant:
    """Change the data."""

    def plant(recipe: Recipe, base: Base) -> Planted:
        return replace(recipe, data=lambda: change(base.data()), **more), replace(recipe, **more)  # pyright: ignore[reportArgumentType]

    return plant


def holes(examples: Examples, rows: Tensor) -> Examples:
    """Put a NaN into each of the rows."""
    examples.x.flatten(1)[rows, 0] = float("nan")
    return examples


def infinities(examples: Examples, rows: Tensor) -> Examples:
    """Put infinity into each of the rows."""
    examples.x.flatten(1)[rows, -1] = float("inf")
    return examples


def huge_inputs(examples: Examples, rows: Tensor) -> Examples:
    """Enlarge the inputs of the rows."""
    examples.x[rows] *= 300
    return examples


def huge_targets(examples: Examples, rows: Tensor) -> Examples:
    """Enlarge the targets of the rows."""
    examples.y[rows] = 300 * (examples.y[rows] + 1)
    return examples


def blank(examples: Examples, rows: Tensor) -> Examples:
    """Make all inputs of the rows one and the same number."""
    examples.x[rows] = 0.0
    return examples


def shuffled(examples: Examples) -> Examples:
    """Give every training example another one's target."""
    order = torch.randperm(len(examples.y), generator=torch.Generator().manual_seed(8))
    return examples._replace(y=examples.y[order])


def few(examples: Examples) -> Examples:
    """Keep 40 training examples."""
    return examples._replace(x=examples.x[:40], y=examples.y[:40])


# Losses and models that overflow


def by_hand(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of each class by itself, from probabilities: log(1 - p) of a p that is exactly 1 is minus infinity."""
    p, hot = output.sigmoid(), _one_hot(output, target)
    return -(hot * p.log() + (1 - hot) * (1 - p).log()).mean()


def stable(output: Tensor, target: Tensor) -> Tensor:
    """The same, from scores."""
    return F.binary_cross_entropy_with_logits(output, _one_hot(output, target))


def _one_hot(output: Tensor, target: Tensor) -> Tensor:
    return F.one_hot(target, output.shape[1]).movedim(-1, 1).float()


def probability_by_hand(recipe: Recipe, base: Base) -> Planted:
    """Take the logarithms of probabilities, of a network whose scores are large."""
    sharp = replace(recipe, model=lambda: nn.Sequential(base.make(), networks.Times(5.0)), loss=stable)
    return replace(sharp, loss=by_hand, judge=stable), sharp


def logarithm_by_hand(recipe: Recipe, base: Base) -> Planted:
    """Compare logarithms of outputs, which may be below zero, with those of targets."""

    def data() -> Examples:
        found = base.data()
        least = found.y.min()
        return found._replace(y=(found.y - least + 1), held_y=(found.held_y - least + 1).clamp_min(0.1))

    def unguarded(output: Tensor, target: Tensor) -> Tensor:
        return ((output + 1).log() - target.log()).square().mean()

    def guarded(output: Tensor, target: Tensor) -> Tensor:
        return ((F.softplus(output)).log() - target.log()).square().mean()

    healthy = replace(recipe, data=data, loss=guarded)
    return replace(healthy, loss=unguarded, judge=guarded), healthy


def blank_rows_standardised(recipe: Recipe, base: Base) -> Planted:
    """Divide each example by its own deviation, which is zero in a few."""

    def made(eps: float) -> Recipe:
        return replace(
            recipe,
            data=lambda: spoilt(5, blank)(base.data()),
            model=lambda: nn.Sequential(networks.Standardised(eps), base.make()),
            by_row=True,
        )

    return made(0.0), made(1e-3)


# Networks


def model_made(
    make: Callable[[Base], nn.Module], healthy: Callable[[Base], nn.Module] | None = None, **more: object
) -> Plant:
    """Make another network; the twin's is the usual one, or `healthy`."""

    def plant(recipe: Recipe, base: Base) -> Planted:
        twin = recipe if healthy is None else replace(recipe, model=partial(healthy, base))
        return replace(recipe, model=partial(make, base), **more), twin  # pyright: ignore[reportArgumentType]

    return plant


def _recurrent(kind: str, radius: float) -> Callable[[Base], nn.Module]:
    """Make a plain recurrent network whose recurrent weights multiply a state's norm by `radius` in each step."""

    def make(base: Base) -> nn.Module:
        model = networks.Recurrent(kind, 0, 1) if base.source == "echoes" else _spelling(kind)
        with torch.no_grad():
            nn.init.orthogonal_(model.memory.weight_hh_l0, gain=radius)  # pyright: ignore[reportArgumentType]
        return model

    return make


def _spelling(kind: str) -> networks.Recurrent:
    from thalweg.examples.faults.bases import alphabet

    return networks.Recurrent(kind, alphabet(), alphabet())


def _sizes(base: Base) -> tuple[int, int]:
    examples = base.data()
    outputs = int(examples.y.max()) + 1 if base.classifies else examples.y.shape[-1]
    return examples.x.shape[-1], outputs


def _deeper(activation: networks.Activation, gain: float = 1.0) -> Callable[[Base], nn.Module]:
    """Make a perceptron of ten layers for the base's data."""
    return lambda base: networks.scaled(networks.deep(*_sizes(base), depth=9, activation=activation), gain)


def _started_as_usual(base: Base) -> nn.Module:
    """Make the same of sigmoids, started as PyTorch starts layers."""
    inputs, outputs = _sizes(base)
    return networks.mlp(inputs, *[32] * 9, outputs, activation=nn.Sigmoid)


def _off(share: float) -> Callable[[Base], nn.Module]:
    return lambda base: networks.switched_off(base.make(activation=nn.ReLU), share)


def _scaled(factor: float, activation: networks.Activation | None = None) -> Callable[[Base], nn.Module]:
    return lambda base: networks.scaled(base.make(**({} if activation is None else {"activation": activation})), factor)


def _cut(base: Base) -> nn.Module:
    model = base.make()
    assert isinstance(model, nn.Sequential)
    return networks.Cut(model, len(model) - 1)


def _frozen(base: Base) -> nn.Module:
    model = base.make()
    *rest, _ = model.parameters()
    for parameter in rest:
        parameter.requires_grad_(False)
    return model


def _last_only(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())[-2:]


def _normalised(scale: float, eps: float) -> Callable[[Base], nn.Module]:
    """Make a deep perceptron with layer normalisation after each hidden matrix, whose weights begin `scale` times as large."""

    def make(base: Base) -> nn.Module:
        parts = list[nn.Module]()
        for part in networks.deep(*_sizes(base), depth=5):
            parts += [part] if isinstance(part, nn.Linear) else [nn.LayerNorm(32, eps=eps), part]
        return networks.scaled(nn.Sequential(*parts), scale)

    return make


def sharp_attention(recipe: Recipe, base: Base) -> Planted:
    """Multiply attention scores, so that they saturate, at a brisk rate."""
    brisk = replace(recipe, learning_rate=2 * recipe.learning_rate)
    return replace(brisk, model=partial(base.make, sharpness=300.0)), brisk


class Coarse(nn.Module):
    """A network in another format: inputs are cast to it, outputs back to float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        """Call the network."""
        return self.network(x.to(self.dtype) if x.is_floating_point() else x).float()


def halved(recipe: Recipe, base: Base) -> Planted:
    """Keep weights and Adam's state in float16, where its eps of 1e-8 is zero."""
    return replace(recipe, model=lambda: Coarse(base.make(), torch.float16)), recipe


def rounded(recipe: Recipe, base: Base) -> Planted:
    """Keep weights in bfloat16 and train at a low rate: most steps are smaller than half the distance to the next number.

    That the rate is a tenth of the usual one is as true: at ten times the rate steps would not be rounded away.
    """
    slow = replace(recipe, learning_rate=0.1 * recipe.learning_rate)
    return replace(slow, model=lambda: Coarse(base.make(), torch.bfloat16)), slow


FAULTS: tuple[Fault, ...] = (
    Fault("learning-rate-too-high", "moderate", rate_times(30.0, 8.0)),
    Fault("learning-rate-too-high", "far", rate_times(300.0, 100.0)),
    Fault("missing-warm-up", "brisk", without_warmup(3.0), also=("learning-rate-too-high",)),
    Fault("missing-warm-up", "very-brisk", without_warmup(8.0), also=("learning-rate-too-high",)),
    Fault(
        "exploding-gradient",
        "recurrent",
        model_made(_recurrent("relu", 3.0), _recurrent("relu", 0.9)),
        ("characters/gru", "echoes/lstm"),
    ),
    Fault("exploding-gradient", "deep", model_made(_deeper(nn.ReLU, 3.0), _deeper(nn.ReLU)), PLAIN),
    Fault(
        "exploding-gradient",
        "scaled",
        model_made(_scaled(5.0)),
        ("digits/cnn", "digits/autoencoder", "friedman/deep-relu", "pulses/cnn-1d"),
    ),
    Fault("loss-overflow", "probability", probability_by_hand, CLASSES),
    Fault("loss-overflow", "logarithm", logarithm_by_hand, ("waves/deep", "friedman/deep-relu", "echoes/lstm")),
    Fault("loss-overflow", "standardised", blank_rows_standardised, FIGURES + FIGURES_HELD[:3]),
    Fault("bad-data", "nan", with_data(spoilt(3, holes, seed=12), by_row=True), OF_NUMBERS),
    Fault("bad-data", "many", with_data(spoilt(40, infinities), by_row=True), OF_NUMBERS[::2]),
    Fault("learning-rate-too-low", "tenfold", rate_times(0.1, 0.1)),
    Fault("learning-rate-too-low", "hundredfold", rate_times(0.01, 0.01)),
    Fault("learning-rate-too-low", "thousandfold", rate_times(1e-3, 1e-3), ALL[::2]),
    Fault("vanishing-gradient", "sigmoid", model_made(_deeper(nn.Sigmoid), _deeper(nn.Tanh)), PLAIN),
    Fault("vanishing-gradient", "usual-start", model_made(_started_as_usual, _deeper(nn.Tanh)), PLAIN),
    Fault(
        "vanishing-gradient",
        "recurrent",
        model_made(_recurrent("tanh", 0.02), _recurrent("tanh", 1.0)),
        ("characters/gru", "echoes/lstm"),
    ),
    Fault(
        "dead-units",
        "all",
        model_made(_off(1.0)),
        ("digits/mlp", "digits/cnn", "digits/autoencoder", "letters/smooth-mlp", "pulses/cnn-1d", "friedman/deep-relu"),
    ),
    Fault(
        "dead-units",
        "most",
        model_made(_off(0.9)),
        ("digits/mlp", "digits/cnn", "digits/autoencoder", "letters/smooth-mlp", "pulses/cnn-1d", "friedman/deep-relu"),
    ),
    Fault("saturated-units", "weights", model_made(_scaled(40.0, nn.Tanh), _scaled(1.0, nn.Tanh)), PLAIN),
    Fault(
        "saturated-units",
        "sigmoid",
        model_made(_scaled(100.0, nn.Sigmoid), _scaled(2.0, nn.Sigmoid)),
        ("digits/mlp", "digits/autoencoder", "letters/smooth-mlp"),
    ),
    Fault("no-gradient", "frozen", model_made(_frozen), ALL[::2]),
    Fault("no-gradient", "detached", model_made(_cut), IN_A_ROW),
    Fault(
        "no-gradient",
        "left-out",
        lambda recipe, base: (replace(recipe, stepped=_last_only), recipe),
        ALL[1::2],
        own_loop_only=True,
    ),
    Fault("schedule-ended-early", "tenth", ended_after(0.1)),
    Fault("schedule-ended-early", "quarter", ended_after(0.25), ALL[::3]),
    Fault("weight-decay-too-high", "strong", decay_of(0.03)),
    Fault("weight-decay-too-high", "far", decay_of(0.3), ALL[::2]),
    Fault("nothing-to-learn", "shuffled", with_data(shuffled)),
    Fault("bad-batch", "inputs", with_data(spoilt(4, huge_inputs)), OF_NUMBERS),
    Fault(
        "bad-batch",
        "targets",
        with_data(spoilt(4, huge_targets)),
        ("waves/deep", "digits/autoencoder", "friedman/deep-relu", "echoes/lstm", "letters/narrow-autoencoder"),
    ),
    Fault(
        "unstable-norm",
        "small-weights",
        model_made(_normalised(1e-3, 1e-12), _normalised(1.0, 1e-5)),
        PLAIN,
        also=("learning-rate-too-high",),
    ),
    Fault(
        "unstable-norm",
        "attention",
        sharp_attention,
        ("characters/transformer", "echoes/encoder"),
        ("momentum",),
        also=("learning-rate-too-high",),
    ),
    Fault("stale-second-moment", "shift", shifted(0.7, 1.0, 300), SHIFTED, ("adam", "adamw")),
    Fault("batch-too-small", "one", batch_of(1, 0.3), tuple(n for n in ALL if "cnn" not in n)),
    Fault("batch-too-small", "two", batch_of(2, 0.3), ALL[::2]),
    Fault("low-precision", "float16", halved, ALL, ("adamw", "adam"), own_loop_only=True),
    Fault("low-precision", "bfloat16", rounded, ALL, ("momentum", "adamw"), also=("learning-rate-too-low",)),
    Fault(
        "overfitting",
        "few",
        with_data(few, steps=500, schedule=schedule.constant(total=500)),
        (
            "digits/mlp",
            "digits/cnn",
            "waves/deep",
            "characters/gru",
            "letters/smooth-mlp",
            "friedman/deep-relu",
            "pulses/cnn-1d",
            "echoes/encoder",
        ),
    ),
    Fault("stale-second-moment", "late-shift", shifted(0.8, 2.0, 500), SHIFTED, ("adam", "adamw")),
)
