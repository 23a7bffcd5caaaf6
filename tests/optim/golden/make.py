"""Run published optimisers in a fixed noisy bowl and save the weights they reach: what `test_references.py` holds the rules to.

In a virtual environment of its own (Python 3.11 and, beside numpy 2.4.6):

    pip install torch==2.13.0 optax==0.2.8 jax==0.10.2 schedulefree==1.4.1 prodigyopt==1.1.2 lion-pytorch==0.2.5 adam-mini==1.1.1
    pip install --no-deps timm==1.0.31
    python tests/optim/golden/make.py                     # all of them, or: make.py torch optax ...
    python tests/optim/golden/make.py --of kyleliang919 FOLDER --of kellerjordan FOLDER

The last two are no packages: FOLDER is a checkout of github.com/kyleliang919/C-Optim (2c0517c) or github.com/KellerJordan/Muon
(857d1ad).

Each file is of one package. NAME.npz has, for each case, the weights after steps 1, 2, 10, 50 and 200 (float64, all tensors in
one flat row, in the order of the shapes) as `CASE.w`. Of schedule-free methods that is y, where gradients are computed, and
`CASE.x` is the average at the same steps. NAME.json says how each case was made, with thalweg's rule and options for the same,
and

- `d`: Prodigy's estimate after the same steps;
- `rounding`: what the package errs by in float32 under the gradients of its own float64 run: root mean square over all weights
  and steps, in units of 2^-23;
- `within`: how near a rule has to come in float64, with `because` where that is not 1e-12.

Where a package defines something otherwise than PyTorch, constants are chosen at which both are the same; the case says so.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from bowl import KEPT, SHAPES, STEPS, WARM_UP, Bowl, concatenated, rates  # noqa: E402

MATRICES = [(5, 3), (3, 5)]
Build = Callable[..., Any]


# How each kind of reference is driven


class Torch:
    """An optimiser of PyTorch's kind."""

    def __init__(self, case: Case, bowl: Bowl, dtype: torch.dtype):
        self.bowl, self.dtype = bowl, dtype
        self.weights = [torch.nn.Parameter(torch.tensor(w, dtype=dtype)) for w in bowl.split(bowl.start)]
        self.optimizer = case.build(self.weights, case.lr)

    def step(self, gradient: np.ndarray, lr: float) -> None:
        for w, g in zip(self.weights, self.bowl.split(gradient), strict=True):
            w.grad = torch.tensor(g, dtype=self.dtype)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()

    def read(self) -> dict[str, Any]:
        return {"w": concatenated(w.detach().numpy() for w in self.weights)}


class ScheduleFree(Torch):
    """The authors' optimiser, whose weights are y in training and x in evaluation."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.optimizer.train()

    def read(self) -> dict[str, Any]:
        found = super().read()
        kept = copy.deepcopy([w.data for w in self.weights])
        self.optimizer.eval()
        found["x"] = super().read()["w"]
        self.optimizer.train()
        for w, y in zip(self.weights, kept, strict=True):
            w.data.copy_(y)  # the way there and back rounds
        return found


class Prodigy(Torch):
    """The authors' optimiser, which tells what rate it has found."""

    def read(self) -> dict[str, Any]:
        return super().read() | {"d": float(self.optimizer.param_groups[0]["d"])}


class Exact(TorchFunctionMode):
    """Within, `bfloat16()` rounds nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].clone() if func is torch.Tensor.bfloat16 else func(*args, **(kwargs or {}))


class Unrounded(Torch):
    """A Muon that iterates in the weights' own dtype."""

    def step(self, gradient: np.ndarray, lr: float) -> None:
        with Exact():
            super().step(gradient, lr)


class Optax:
    """A transformation of optax, under `jit`; in float32 JAX has no float64 at all, as is its default."""

    def __init__(self, case: Case, bowl: Bowl, dtype: torch.dtype):
        import jax
        import jax.numpy as jnp
        import optax

        self.bowl, self.wide = bowl, dtype is torch.float64
        self.numbers = np.float64 if self.wide else np.float32
        with self.precision():
            at = jnp.asarray(rates(case.given or case.rates, case.lr), self.numbers)
            self.transformation = case.build(lambda count: at[count])
            self.weights = [jnp.asarray(w, self.numbers) for w in bowl.split(bowl.start)]
            self.state = self.transformation.init(self.weights)

            @jax.jit
            def update(gradients: Any, state: Any, weights: Any) -> Any:
                changes, state = self.transformation.update(gradients, state, weights)
                return optax.apply_updates(weights, changes), state

            self.update = update

    def precision(self) -> Any:
        import jax

        return jax.enable_x64(self.wide)

    def step(self, gradient: np.ndarray, lr: float) -> None:
        with self.precision():
            gradients = [g.astype(self.numbers) for g in self.bowl.split(gradient)]
            self.weights, self.state = self.update(gradients, self.state, self.weights)

    def read(self) -> dict[str, Any]:
        return {"w": concatenated(np.asarray(w) for w in self.weights)}


class OptaxScheduleFree(Optax):
    def read(self) -> dict[str, Any]:
        import optax

        with self.precision():
            x = optax.contrib.schedule_free_eval_params(self.state, self.weights)
        return super().read() | {"x": concatenated(np.asarray(w) for w in x)}


# The grids


@dataclass
class Case:
    """A reference, and the rule and options that should do the same.

    `rates` is the course of the rate; where the reference is given another one, because it warms itself up, that is `given`.
    """

    name: str
    reference: str
    rule: str
    options: dict[str, Any]
    build: Build
    lr: float
    rates: str = "constant"
    given: str | None = None
    shapes: list[tuple[int, ...]] = field(default_factory=lambda: SHAPES)
    away: float = 1.0
    steep: float = 1.0
    within: float = 1e-12
    because: str = ""
    driver: type = Torch


def of_torch() -> Iterator[Case]:
    """What of torch.optim `test_parity.py` does not hold rules to, or only to the torch at hand, which may be another version."""
    grid: list[tuple[dict[str, Any], float, str]]
    grid = [
        ({"betas": (0.9, 0.999), "momentum_decay": 4e-3}, 0.02, "constant"),
        ({"betas": (0.8, 0.99), "momentum_decay": 0.1, "weight_decay": 0.1}, 0.02, "falling"),
        ({"betas": (0.9, 0.99), "weight_decay": 0.1, "decoupled_weight_decay": True}, 0.02, "falling"),
    ]
    for i, (options, lr, course) in enumerate(grid):
        build = made(torch.optim.NAdam, options)
        yield Case(f"nadam-{i}", "torch.optim.NAdam", "nadam", options, build, lr, course)

    half = {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.1}
    grid = [
        (half, 0.05, "falling"),
        ({"adjust_lr_fn": "original", "momentum": 0.8, "weight_decay": 0.0}, 0.02, "constant"),
        ({"adjust_lr_fn": "match_rms_adamw", "nesterov": False, "weight_decay": 0.0}, 0.05, "falling"),
        ({"adjust_lr_fn": "original", "ns_steps": 3, "ns_coefficients": (2.0, -1.5, 0.5)}, 0.02, "warmed"),
    ]
    for i, (options, lr, course) in enumerate(grid):
        build, what = made(torch.optim.Muon, options), "torch.optim.Muon, bfloat16() taken out"
        options = {"weight_decay": 0.1, **options}
        yield Case(f"muon-{i}", what, "muon", options, build, lr, course, shapes=MATRICES, driver=Unrounded)
    yield Case(
        *(
            "muon-half",
            "torch.optim.Muon",
            "muon",
            half | {"half": True},
            made(torch.optim.Muon, half),
            0.05,
            "falling",
        ),
        shapes=MATRICES,
        within=0.02,
        because="bfloat16 has eight bits, and processors multiply it in different orders",
    )

    grid = [
        ({}, 0.01, "constant"),
        ({"weight_decay": 0.1, "d": 1.5}, 0.05, "falling"),
        ({"beta2_decay": -0.5, "eps": (1e-4, 0.1)}, 0.5, "constant"),
    ]
    for i, (options, lr, course) in enumerate(grid):
        build, what = made(torch.optim.Adafactor, options), "torch.optim.Adafactor, whose eps1 None is 2^-52 in float64"
        options = {"eps": (2.0**-52, 1e-3), **options}
        yield Case(f"adafactor-{i}", what, "adafactor", options, build, lr, course)


def of_schedulefree() -> Iterator[Case]:
    """The authors', in training and evaluation mode; the last warms itself up."""
    import schedulefree

    grid = [
        (0.9, {"r": 0.0, "weight_lr_power": 2.0}, "constant"),
        (0.9, {"r": 1.0, "weight_lr_power": 2.0, "weight_decay": 0.1}, "falling"),
        (0.6, {"r": 0.0, "weight_lr_power": 0.0, "weight_decay": 0.1}, "falling"),
        (0.95, {"r": 0.5, "weight_lr_power": 1.0}, "warmed"),
        (0.9, {"weight_decay": 0.05, "warmup_steps": WARM_UP}, "warmed"),
    ]
    for i, (beta, options, course) in enumerate(grid):
        for rule, name, lr, momentum in [
            ("schedule_free_sgd", "SGDScheduleFree", 0.3, {"momentum": beta}),
            ("schedule_free_adamw", "AdamWScheduleFree", 0.05, {"betas": (beta, 0.99)}),
        ]:
            given = momentum | options
            ours = {k: v for k, v in given.items() if k != "warmup_steps"}
            yield Case(
                *(
                    f"{rule}-{i}",
                    f"schedulefree.{name}",
                    rule,
                    ours,
                    made(getattr(schedulefree, name), given),
                    lr,
                    course,
                ),
                given="constant" if "warmup_steps" in given else None,
                driver=ScheduleFree,
            )


def of_prodigyopt() -> Iterator[Case]:
    """The authors', from the origin, so that what is left of d's digits does not hang on rounding, and once from elsewhere."""
    import prodigyopt

    def case(name: str, options: dict[str, Any], course: str, **rest: Any) -> Case:
        full = {"betas": (0.9, 0.999), "d0": 1e-6, "d_coef": 1.0} | options
        build = made(prodigyopt.Prodigy, full)
        return Case(name, "prodigyopt.Prodigy", "prodigy", full, build, 1.0, course, driver=Prodigy, **rest)

    grid = [
        ({}, "constant"),
        ({"weight_decay": 0.1}, "falling"),
        ({"weight_decay": 0.1, "decouple": False}, "falling"),
        ({"use_bias_correction": True, "safeguard_warmup": True}, "warmed"),
        ({"use_bias_correction": True, "d_coef": 0.5, "betas": (0.8, 0.99)}, "falling"),
        ({"growth_rate": 1.05, "d0": 1e-3}, "constant"),
        ({"safeguard_warmup": True, "d_coef": 2.0, "beta3": 0.9, "d0": 1e-4}, "warmed"),
    ]
    for i, (options, course) in enumerate(grid):
        yield case(f"prodigy-{i}", options, course, away=0.0)
    why = "the first steps are a millionth long, so that w0 - w keeps ten digits, which d inherits"
    yield case("prodigy-far", {"weight_decay": 0.01}, "falling", within=1e-8, because=why)


def of_lion_pytorch() -> Iterator[Case]:
    import lion_pytorch

    grid = [
        ({"betas": (0.9, 0.99)}, 0.01, "constant"),
        ({"betas": (0.95, 0.98), "weight_decay": 0.5}, 0.02, "falling"),
        ({"betas": (0.5, 0.9), "weight_decay": 0.1}, 0.02, "warmed"),
    ]
    for i, (options, lr, course) in enumerate(grid):
        yield Case(f"lion-{i}", "lion_pytorch.Lion", "lion", options, made(lion_pytorch.Lion, options), lr, course)


def of_timm() -> Iterator[Case]:
    """timm's `caution`: tensor by tensor, the mask is divided by its mean, at least 1e-3."""
    adamw, lion = (of_folder(installed("timm") / "optim", name) for name in ("adamw", "lion"))
    grid = [
        ("adamw", adamw.AdamWLegacy, {"betas": (0.9, 0.999), "weight_decay": 0.0}, 0.02, "constant"),
        ("adamw", adamw.AdamWLegacy, {"betas": (0.8, 0.99), "weight_decay": 0.1}, 0.02, "falling"),
        ("adamw", adamw.AdamWLegacy, {"weight_decay": 0.1, "amsgrad": True, "eps": 1e-3}, 0.02, "warmed"),
        ("lion", lion.Lion, {"betas": (0.9, 0.99)}, 0.01, "constant"),
        ("lion", lion.Lion, {"betas": (0.95, 0.98), "weight_decay": 0.5}, 0.015, "falling"),
    ]
    for i, (rule, kind, options, lr, course) in enumerate(grid):
        build, ours = made(kind, {"foreach": False, "caution": True, **options}), {"cautious": True, **options}
        yield Case(f"{rule}-{i}", f"timm.optim.{kind.__name__}, caution", rule, ours, build, lr, course)


def of_kyleliang919() -> Iterator[Case]:
    """The authors' own C-AdamW, one tensor at a time."""
    module = of_folder(FOLDERS["kyleliang919"], "c_adamw")
    what = "C-Optim's c_adamw.AdamW, foreach=False; its eps is not freed of the bias, so it is 1e-30"
    grid = [
        ({"betas": (0.9, 0.999), "weight_decay": 0.1}, 0.02, "constant"),
        ({"betas": (0.8, 0.99), "weight_decay": 0.0}, 0.02, "falling"),
    ]
    for i, (options, lr, course) in enumerate(grid):
        options = {"eps": 1e-30, **options}
        build = made(module.AdamW, {"foreach": False, "no_deprecation_warning": True, **options})
        yield Case(f"adamw-{i}", what, "adamw", {"cautious": True, **options}, build, lr, course)


def of_kellerjordan() -> Iterator[Case]:
    """The author's Muon; a filter of four dimensions is a matrix to it."""
    module = of_folder(FOLDERS["kellerjordan"], "muon")
    what = "muon.SingleDeviceMuon, bfloat16() taken out; it adds its 1e-7 to the norm, so gradients are made large"
    grid = [
        ({"momentum": 0.95, "weight_decay": 0.1}, 0.02, "falling"),
        ({"momentum": 0.8, "weight_decay": 0.0}, 0.05, "constant"),
    ]
    for i, (options, lr, course) in enumerate(grid):
        build, ours = made(module.SingleDeviceMuon, options), {"adjust_lr_fn": "original", **options}
        case = Case(f"muon-{i}", what, "muon", ours, build, lr, course, steep=1e8, driver=Unrounded)
        yield replace(case, shapes=[*MATRICES, (2, 3, 1, 2)])


def of_adam_mini() -> Iterator[Case]:
    """Blocks go by name: a row of what is called linear, all of what has no name it knows, each element of a bias."""
    from adam_mini import Adam_mini

    names = ("linear.weight", "other.weight", "linear.bias")
    what = f"adam_mini.Adam_mini, names {', '.join(names)}; it never shrinks a bias"
    grid = [
        ({"betas": (0.9, 0.999), "weight_decay": 0.0}, 0.02, "constant"),
        ({"betas": (0.8, 0.99), "weight_decay": 0.1, "eps": 1e-3}, 0.02, "falling"),
    ]
    for i, (options, lr, course) in enumerate(grid):
        build = made(lambda weights, **o: Adam_mini([*zip(names, weights, strict=True)], verbose=False, **o), options)
        shapes = [(5, 3), (3, 4), (4,)]
        yield Case(f"adam_mini-{i}", what, "adam_mini", options, build, lr, course, shapes=shapes)


def of_optax() -> Iterator[Case]:
    """Those of optax that are, or are at some constants, PyTorch's.

    Not among them: amsgrad (the largest of the corrected squares divides), muon (momentum is freed of its bias), decay of
    adafactor and adadelta (not multiplied by the rate, or not through the gradient). Its schedule-free methods weigh a step by
    the rate of the next one, so theirs stays constant.
    """
    import optax
    from optax import contrib

    def case(name: str, what: str, options: dict[str, Any], lr: float, course: str, build: Build, **rest: Any) -> Case:
        rule = name.split("-")[0]
        return Case(name, f"optax.{what}", rule, options, build, lr, course, **{"driver": Optax, **rest})

    tiny, elsewhere = 1e-30, "eps stands elsewhere, so it is 1e-30"
    yield case("gradient_descent", "sgd", {}, 0.1, "falling", lambda r: optax.sgd(r))
    yield case("momentum", "sgd", {"momentum": 0.9}, 0.03, "falling", lambda r: optax.sgd(r, 0.9))
    yield case("nesterov", "sgd", {"momentum": 0.9}, 0.03, "falling", lambda r: optax.sgd(r, 0.9, nesterov=True))
    for name, remark, options, course in [
        ("rmsprop", "", {"alpha": 0.9, "eps": 1e-8}, "falling"),
        ("rmsprop-centered", "", {"alpha": 0.95, "centered": True, "eps": 1e-3}, "falling"),
        ("rmsprop-momentum", "; the rate lies inside the momentum, so it stays constant",
         {"alpha": 0.9, "momentum": 0.8, "eps": 1e-8}, "constant"),
    ]:  # fmt: skip
        theirs = {"decay" if k == "alpha" else k: v for k, v in options.items()} | {"eps_in_sqrt": False}
        build = made_of(optax.rmsprop, theirs)
        yield case(name, f"rmsprop, eps_in_sqrt=False{remark}", options, 0.01, course, build)
    for name, kind, remark, options, course in [
        ("adam", optax.adam, "", {"betas": (0.9, 0.99), "eps": 1e-3}, "falling"),
        ("adamw", optax.adamw, "", {"betas": (0.9, 0.999), "weight_decay": 0.1}, "falling"),
        ("nadam", optax.nadam, "whose momentum does not grow, as with a momentum_decay without end",
         {"betas": (0.9, 0.999), "momentum_decay": 1e6}, "falling"),
        ("radam", optax.radam, elsewhere, {"betas": (0.9, 0.99), "eps": tiny}, "falling"),
        ("radam-early", optax.radam, elsewhere, {"betas": (0.8, 0.999), "eps": tiny}, "constant"),
        ("adamax", optax.adamax, "", {"betas": (0.9, 0.99), "eps": 1e-3}, "falling"),
        ("lion", optax.lion, "", {"betas": (0.9, 0.99), "weight_decay": 0.1}, "falling"),
    ]:  # fmt: skip
        own = {k: v for k, v in options.items() if k not in ("betas", "momentum_decay")}
        b1, b2 = options["betas"]
        lr = 0.01 if name == "lion" else 0.02
        what = f"{name.split('-')[0]}{', ' if remark else ''}{remark}"
        yield case(name, what, options, lr, course, made_of(kind, {"b1": b1, "b2": b2, **own}))
    options = {"initial_accumulator_value": 0.1, "eps": tiny}
    yield case("adagrad", f"adagrad, {elsewhere}", options, 0.1, "falling", made_of(optax.adagrad, options))
    options = {"rho": 0.9, "eps": 1e-4}
    yield case("adadelta", "adadelta", options, 1.0, "falling", made_of(optax.adadelta, options))
    yield case(
        *("adafactor", f"adafactor, min_dim_size_to_factor=1; {elsewhere}", {"eps": (tiny, 1e-3)}, 0.03, "constant"),
        made_of(optax.adafactor, {"min_dim_size_to_factor": 1, "eps": tiny}),
        shapes=[(5, 3), (4,), (3, 4)],
        within=1e-7,
        because="it takes the power of the step in float32",
    )
    options = {"use_bias_correction": True, "betas": (0.9, 0.999), "weight_decay": 0.1}
    build = made_of(contrib.prodigy, {"weight_decay": 0.1})
    yield case("prodigy", "contrib.prodigy", options, 1.0, "falling", build, away=0.0)

    def sgd(rate: Any) -> Any:
        return optax.chain(optax.add_decayed_weights(0.1), optax.sgd(rate))

    def adamw(rate: Any) -> Any:
        return optax.adamw(rate, b1=0.0, b2=0.99, weight_decay=0.1)

    for name, base, lr, options in [
        ("schedule_free_sgd", sgd, 0.3, {"momentum": 0.9, "weight_decay": 0.1}),
        ("schedule_free_adamw", adamw, 0.05, {"betas": (0.9, 0.99), "weight_decay": 0.1}),
    ]:
        what = f"contrib.schedule_free around {base.__name__} without momentum"
        build = around(contrib.schedule_free, base)
        yield case(name, what, options, lr, "constant", build, driver=OptaxScheduleFree)


def made(kind: Any, options: dict[str, Any]) -> Build:
    """Give what makes an optimiser of PyTorch's kind from weights and rate."""
    return lambda weights, lr: kind(weights, lr=lr, **options)


def made_of(kind: Any, options: dict[str, Any]) -> Build:
    """Give what makes a transformation of optax from the course of the rate."""
    return lambda rate: kind(rate, **options)


def around(wrapper: Any, base: Build) -> Build:
    """Give what makes a schedule-free transformation from the course of the rate."""
    return lambda rate: wrapper(base(rate), rate, b1=0.9)


FOLDERS: dict[str, Path] = {}


def installed(package: str) -> Path:
    """Tell where a package lies without importing it: timm would load torchvision for the sake of a file."""
    found = importlib.util.find_spec(package)
    assert found is not None, package
    return Path(found.origin or "").parent


def of_folder(folder: Path, module: str) -> Any:
    """Load one file of a folder as a package's, so that its relative imports go."""
    package = types.ModuleType(f"of_{folder.parent.name}_{folder.name}".replace("-", "_"))
    package.__path__ = [str(folder)]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{package.__name__}.{module}")


SOURCES: dict[str, tuple[Callable[[], Iterator[Case]], list[str]]] = {
    "torch": (of_torch, ["torch"]),
    "schedulefree": (of_schedulefree, ["schedulefree", "torch"]),
    "prodigyopt": (of_prodigyopt, ["prodigyopt", "torch"]),
    "timm": (of_timm, ["timm", "torch"]),
    "lion_pytorch": (of_lion_pytorch, ["lion-pytorch", "torch"]),
    "optax": (of_optax, ["optax", "jax"]),
    "adam_mini": (of_adam_mini, ["adam-mini", "torch"]),
    "kyleliang919": (of_kyleliang919, ["torch"]),
    "kellerjordan": (of_kellerjordan, ["torch"]),
}


# The run


@contextlib.contextmanager
def numbers_as(dtype: torch.dtype) -> Iterator[None]:
    """Within, torch keeps its own numbers (NAdam's product of momenta, say) in this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def run(case: Case) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Give what is kept of a case: arrays, and the entry of the JSON file."""
    bowl = Bowl(case.shapes, case.away, case.steep)
    given = rates(case.given or case.rates, case.lr)
    kept, way, gradients = list[dict[str, Any]](), list[np.ndarray](), list[np.ndarray]()
    with numbers_as(torch.float64):
        exact = case.driver(case, bowl, torch.float64)
        found = exact.read()
        for step in range(1, STEPS + 1):
            gradients.append(bowl.gradient(found["w"], step))
            exact.step(gradients[-1], given[step - 1])
            found = exact.read()
            way.append(found["w"])
            if step in KEPT:
                kept.append(found)
    with numbers_as(torch.float32):
        rounded = case.driver(case, bowl, torch.float32)
        errors = list[float]()
        for step in range(1, STEPS + 1):
            rounded.step(gradients[step - 1], given[step - 1])
            errors.append(float(np.mean((rounded.read()["w"] - way[step - 1]) ** 2)))
    assert np.isfinite(way[-1]).all(), case.name
    arrays = {f"{case.name}.{what}": np.stack([k[what] for k in kept]) for what in ("w", "x") if what in kept[0]}
    entry = {
        "case": case.name,
        "reference": case.reference,
        "rule": case.rule,
        "lr": case.lr,
        "rates": case.rates,
        "options": case.options,
        "shapes": case.shapes,
        "away": case.away,
        "steep": case.steep,
        "within": case.within,
        "because": case.because,
        "rounding": float(f"{(sum(errors) / STEPS) ** 0.5 * 2**23:.4g}"),
    }
    if "d" in kept[0]:
        entry["d"] = [k["d"] for k in kept]
    return arrays, entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", choices=[[], *SOURCES])
    parser.add_argument("--of", nargs=2, action="append", default=[], metavar=("NAME", "FOLDER"))
    options = parser.parse_args()
    FOLDERS.update({name: Path(folder) for name, folder in options.of})
    packages = [name for name in SOURCES if name not in ("kyleliang919", "kellerjordan")]
    torch.set_num_threads(1)
    for name in options.sources or list(FOLDERS) or packages:
        cases, needed = SOURCES[name]
        arrays, entries = dict[str, np.ndarray](), list[dict[str, Any]]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for case in cases():
                found, entry = run(case)
                arrays |= found
                entries.append(entry)
                print(f"{name}: {case.name}, {entry['rounding']} ulp in float32", flush=True)
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
        versions = {package: importlib.metadata.version(package) for package in needed}
        lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
        head = json.dumps({"versions": versions, "steps": KEPT}, indent=1)[:-2]
        (HERE / f"{name}.json").write_text(f'{head},\n "cases": [\n{lines}\n ]\n}}\n', "utf-8")


if __name__ == "__main__":
    main()
