"""Step by step against `torch.optim`: the same numbers from the same gradients."""

import copy
import itertools

import pytest
import torch

from thalweg import optim

SMALL = [(7, 5), (5,), (3, 2, 2), ()]  # gathered into one block
SHAPES = [*SMALL, (33_000,)]  # and one that is worked on alone

GRID = {
    "SGD": [
        {"momentum": m, "nesterov": n, "weight_decay": w, "maximize": x}
        for m, n, w, x in itertools.product([0.0, 0.9], [False, True], [0.0, 0.1], [False, True])
        if m or not n
    ],
    "RMSprop": [
        {"centered": c, "momentum": m, "weight_decay": w, "alpha": a, "maximize": x}
        for c, m, w, a, x in itertools.product([False, True], [0.0, 0.6], [0.0, 0.1], [0.9, 0.99], [False, True])
    ],
    "Adam": [
        {"betas": b, "weight_decay": w, "eps": e, "maximize": x}
        for b, w, e, x in itertools.product(
            [(0.9, 0.999), (0.5, 0.6), (0.0, 0.9)], [0.0, 0.1], [1e-8, 1e-3], [False, True]
        )
    ],
}
GRID["AdamW"] = GRID["Adam"]
GRID["Adamax"] = [
    {"betas": b, "weight_decay": w, "eps": e, "maximize": x}
    for b, w, e, x in itertools.product([(0.9, 0.999), (0.0, 0.5)], [0.0, 0.1], [1e-8, 1e-3], [False, True])
]
GRID["RAdam"] = [  # beta2 = 0.5 never comes to divide by its second moment, 0.9 after some steps
    {"betas": b, "weight_decay": w, "eps": e, "maximize": x}
    for b, w, e, x in itertools.product([(0.9, 0.999), (0.5, 0.9), (0.9, 0.5)], [0.0, 0.1], [1e-8, 1e-3], [False, True])
]
GRID["Adagrad"] = [
    {"lr_decay": d, "weight_decay": w, "eps": e, "maximize": x}
    for d, w, e, x in itertools.product([0.0, 0.1], [0.0, 0.1], [1e-10, 1e-3], [False, True])
]
GRID["Adadelta"] = [
    {"rho": r, "weight_decay": w, "eps": e, "maximize": x}
    for r, w, e, x in itertools.product([0.9, 0.5], [0.0, 0.1], [1e-6, 1e-3], [False, True])
]
CASES = [pytest.param(name, options, id=f"{name}-{i}") for name, grid in GRID.items() for i, options in enumerate(grid)]


def starts(dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def slopes(weights, generator):
    """A wavy landscape with noise."""
    return [torch.sin(3 * w) + w + 0.1 * torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]


def walk(ours, theirs, a, b, steps=100, clip_norm=None, clip_value=None, tolerance=1e-12):
    generator = torch.Generator().manual_seed(2)
    for step in range(steps):
        for w, v, g in zip(a, b, slopes(b, generator), strict=True):
            w.grad, v.grad = g.clone(), g.clone()
        if clip_value is not None:
            torch.nn.utils.clip_grad_value_(b, clip_value)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(b, clip_norm)
        ours.step()
        theirs.step()
        for w, v in zip(a, b, strict=True):
            torch.testing.assert_close(w, v, rtol=tolerance, atol=tolerance, msg=lambda m, s=step: f"step {s}: {m}")


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_hundred_steps_are_torchs_to_1e_12(name, options):
    a, b = starts(shapes=SMALL), starts(shapes=SMALL)
    walk(getattr(optim, name)(a, lr=0.01, **options), getattr(torch.optim, name)(b, lr=0.01, **options), a, b)


@pytest.mark.parametrize(("name", "options"), [(name, grid[-1]) for name, grid in GRID.items()])
def test_a_hundred_steps_of_a_large_tensor_are_torchs_to_1e_12(name, options):
    a, b = starts(), starts()
    walk(getattr(optim, name)(a, lr=0.01, **options), getattr(torch.optim, name)(b, lr=0.01, **options), a, b)


@pytest.mark.parametrize("clip", [{"clip_norm": 2.0}, {"clip_value": 0.5}, {"clip_norm": 2.0, "clip_value": 0.5}])
@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_clipping_is_torchs_value_first_then_norm(name, clip):
    a, b = starts(), starts()
    options = {"lr": 0.01, "weight_decay": 0.1}
    walk(getattr(optim, name)(a, **options, **clip), getattr(torch.optim, name)(b, **options), a, b, 30, **clip)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_in_float32_the_way_stays_close(name):
    a, b = starts(torch.float32), starts(torch.float32)
    options = {"lr": 0.01, "weight_decay": 0.1}
    walk(getattr(optim, name)(a, **options), getattr(torch.optim, name)(b, **options), a, b, tolerance=2e-4)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_complex_weights_are_pairs_of_reals_as_in_torch(name):
    a, b = (starts(torch.complex128, [(4, 3), (2,)]) for _ in range(2))
    options = {"lr": 0.01, "weight_decay": 0.1}
    walk(getattr(optim, name)(a, **options), getattr(torch.optim, name)(b, **options), a, b, steps=20)
    saved = {k: v.dtype for k, v in getattr(optim, name)(a, lr=0.1).state_dict()["state"].get(0, {}).items()}
    assert saved.get("exp_avg", torch.complex128) is torch.complex128


def test_the_default_rates_and_constants_are_torchs():
    for name in ("SGD", "RMSprop", "Adam", "AdamW"):
        ours = getattr(optim, name)([torch.zeros(1)]).defaults
        theirs = getattr(torch.optim, name)([torch.zeros(1)]).defaults
        assert {k: theirs[k] for k in ours if k in theirs} == {k: v for k, v in ours.items() if k in theirs}


@pytest.mark.parametrize("name", ["Momentum", "Nesterov", "GradientDescent"])
def test_the_rules_by_their_own_names_are_torchs_sgd(name):
    options = {"Momentum": {"momentum": 0.9}, "Nesterov": {"momentum": 0.9}, "GradientDescent": {}}[name]
    a, b = starts(), starts()
    theirs = torch.optim.SGD(b, lr=0.01, nesterov=name == "Nesterov", **options)
    walk(getattr(optim, name)(a, lr=0.01, **options), theirs, a, b, steps=30)


LAYOUTS = [
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
    ("RMSprop", {}),
    ("Adam", {}),
    ("AdamW", {}),
]


@pytest.mark.parametrize(("name", "options"), LAYOUTS)
def test_torchs_state_is_continued_here(name, options):
    a, b = starts(), starts()
    ours, theirs = getattr(optim, name)(a, lr=0.01, **options), getattr(torch.optim, name)(b, lr=0.01, **options)
    walk(getattr(torch.optim, name)(a, lr=0.01, **options), theirs, a, b, steps=5)
    ours.load_state_dict(theirs.state_dict())
    walk(ours, theirs, a, b, steps=20)


@pytest.mark.parametrize(("name", "options"), LAYOUTS)
def test_our_state_is_continued_by_torch(name, options):
    a, b = starts(), starts()
    ours, theirs = getattr(optim, name)(a, lr=0.01, **options), getattr(torch.optim, name)(b, lr=0.01, **options)
    walk(ours, getattr(torch.optim, name)(b, lr=0.01, **options), a, b, steps=5)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))  # torch would share our tensors
    walk(ours, theirs, a, b, steps=20)


@pytest.mark.parametrize(("name", "options"), LAYOUTS)
def test_the_layout_of_the_state_is_torchs(name, options):
    a, b = starts(), starts()
    ours, theirs = getattr(optim, name)(a, lr=0.01, **options), getattr(torch.optim, name)(b, lr=0.01, **options)
    walk(ours, theirs, a, b, steps=2)
    mine, its = ours.state_dict()["state"], theirs.state_dict()["state"]
    for number, entry in its.items():
        expected = {k: (v.shape, v.dtype) for k, v in entry.items() if v is not None}
        assert {k: (v.shape, v.dtype) for k, v in mine.get(number, {}).items()} == expected


@pytest.mark.parametrize("rule", ["momentum", "nesterov", "gradient_descent"])
def test_a_generic_optimisers_state_is_loaded_by_torchs_sgd(rule):
    a, b = starts(), starts()
    ours = optim.build(rule, a, lr=0.01)
    momentum = {} if rule == "gradient_descent" else {"momentum": 0.9}
    theirs = torch.optim.SGD(b, lr=0.01)
    walk(ours, torch.optim.SGD(b, lr=0.01, nesterov=rule == "nesterov", **momentum), a, b, steps=3)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))  # torch would share our tensors
    walk(ours, theirs, a, b, steps=5)


def test_groups_differ_in_rate_decay_and_constants():
    def groups(w):
        return [
            {"params": w[:2]},
            {"params": w[2:4], "lr": 0.1, "weight_decay": 0.0},
            {"params": w[4:], "betas": (0.5, 0.9), "maximize": True},
        ]

    a, b = starts(), starts()
    walk(optim.AdamW(groups(a), lr=0.01), torch.optim.AdamW(groups(b), lr=0.01), a, b, steps=30)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_groups_that_differ_only_in_decay_are_torchs_though_they_move_together(name):
    def groups(w):
        return [{"params": w[::2], "weight_decay": 0.3}, {"params": w[1::2], "weight_decay": 0.0}]

    a, b = starts(), starts()
    walk(getattr(optim, name)(groups(a), lr=0.01), getattr(torch.optim, name)(groups(b), lr=0.01), a, b, steps=30)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=40),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=40),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
            milestones=[5],
        ),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=7),
    ],
    ids=["OneCycleLR", "CosineAnnealingLR", "SequentialLR", "CyclicLR"],
)
@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9}), ("AdamW", {})])
def test_torchs_schedules_drive_rate_and_momentum(schedule, name, options):
    a, b = starts(), starts()
    ours, theirs = getattr(optim, name)(a, lr=0.01, **options), getattr(torch.optim, name)(b, lr=0.01, **options)
    mine, its = schedule(ours), schedule(theirs)
    for _ in range(35):
        walk(ours, theirs, a, b, steps=1)
        mine.step()
        its.step()
    assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]


def test_the_rate_may_be_a_tensor_that_a_schedule_fills():
    a, b = starts(), starts()
    ours, theirs = (
        kind(w, lr=torch.tensor(0.01, dtype=torch.float64)) for kind, w in ((optim.AdamW, a), (torch.optim.AdamW, b))
    )
    mine, its = (torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (ours, theirs))
    for _ in range(5):
        walk(ours, theirs, a, b, steps=1)
        mine.step()
        its.step()
    assert isinstance(ours.param_groups[0]["lr"], torch.Tensor)


def test_parameters_whose_gradient_is_missing_stay_as_in_torch():
    a, b = starts(), starts()
    ours, theirs = optim.AdamW(a, lr=0.01), torch.optim.AdamW(b, lr=0.01)
    generator = torch.Generator().manual_seed(3)
    for step in range(40):
        for i, (w, v, g) in enumerate(zip(a, b, slopes(b, generator), strict=True)):
            missing = (step + 1) % (i + 2) == 0
            w.grad, v.grad = (None, None) if missing else (g.clone(), g.clone())
        ours.step()
        theirs.step()
        for w, v in zip(a, b, strict=True):
            torch.testing.assert_close(w, v, rtol=1e-12, atol=1e-12)
    counts = [s["step"].item() for s in ours.state.values()]
    assert counts == [s["step"].item() for s in theirs.state.values()]
    assert len(set(counts)) > 1
