"""Step by step against `torch.optim`: the same numbers from the same gradients."""

import contextlib
import copy
import itertools

import pytest
import torch

from thalweg import optim
from thalweg.optim import groups

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
LONG = {
    "SGD": [
        {"momentum": 0.9, "dampening": 0.9, "weight_decay": 0.1},
        {"momentum": 0.5, "dampening": 0.3, "maximize": True},
    ],
    "Adagrad": [
        {"initial_accumulator_value": 0.1, "weight_decay": 0.1},
        {"initial_accumulator_value": 2.0, "lr_decay": 0.1},
    ],
    "RAdam": [
        {"decoupled_weight_decay": True, "weight_decay": 0.1, "betas": b}
        for b in [(0.9, 0.999), (0.5, 0.9), (0.9, 0.5)]
    ],
    "NAdam": [
        {"decoupled_weight_decay": d, "weight_decay": w, "momentum_decay": m, "betas": b, "maximize": d}
        for d, w, m, b in [
            (False, 0.0, 4e-3, (0.9, 0.999)),
            (True, 0.1, 4e-3, (0.9, 0.999)),
            (False, 0.1, 0.5, (0.5, 0.9)),
            (True, 0.1, 0.0, (0.0, 0.6)),
        ]
    ],
    "Adam": [
        {"amsgrad": True, "betas": b, "weight_decay": w, "eps": e, "maximize": x}
        for b, w, e, x in [
            ((0.9, 0.999), 0.0, 1e-8, False),
            ((0.9, 0.9), 0.1, 1e-8, False),  # v falls often, so that the largest is another
            ((0.5, 0.6), 0.1, 1e-3, True),
            ((0.0, 0.0), 0.0, 1e-8, False),
        ]
    ],
}
"""What is held to torch by both engines over 300 steps in which the rate changes twice."""

LONG["AdamW"] = LONG["Adam"]
LONG_CASES = [pytest.param(n, o, id=f"{n}-{i}") for n, grid in LONG.items() for i, o in enumerate(grid)]
RATES = [0.01, 0.03, 0.002]

CASES = [pytest.param(name, options, id=f"{name}-{i}") for name, grid in GRID.items() for i, options in enumerate(grid)]


# Of options in a grid, those of all third places go through each value of each: the others are among the long proofs.
SOME_HEAVY = [
    case if i % 3 == 0 else pytest.param(*case.values, id=case.id, marks=pytest.mark.heavy)
    for i, case in enumerate(CASES)
]


def starts(dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def slopes(weights, generator):
    """A wavy landscape with noise."""
    return [torch.sin(3 * w) + w + 0.1 * torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]


def take_steps(ours, theirs, a, b, steps=100, clip_norm=None, clip_value=None, tolerance=1e-12):
    generator = torch.Generator().manual_seed(2)
    with all_of_it() if isinstance(theirs, torch.optim.NAdam) else contextlib.nullcontext():
        _walk(ours, theirs, a, b, generator, steps, clip_norm, clip_value, tolerance)


@contextlib.contextmanager
def all_of_it():
    """Within, torch keeps NAdam's product of momenta in float64; in float32 it is 1e-7 off."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _walk(ours, theirs, a, b, generator, steps, clip_norm, clip_value, tolerance):
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


@pytest.mark.parametrize(("name", "options"), SOME_HEAVY)
def test_a_hundred_steps_are_torchs_to_1e_12(name, options):
    a, b = starts(shapes=SMALL), starts(shapes=SMALL)
    take_steps(getattr(optim, name)(a, lr=0.01, **options), getattr(torch.optim, name)(b, lr=0.01, **options), a, b)


@pytest.mark.parametrize(("name", "options"), [(name, grid[-1]) for name, grid in GRID.items()])
def test_a_hundred_steps_of_a_large_tensor_are_torchs_to_1e_12(name, options):
    a, b = starts(), starts()
    take_steps(getattr(optim, name)(a, lr=0.01, **options), getattr(torch.optim, name)(b, lr=0.01, **options), a, b)


def descend_together(optimizers, steps, read):
    """Step all on the landscape under the first one's weights; the rate changes twice. Calls `read` after each step."""
    generator = torch.Generator().manual_seed(2)
    lead, *others = ([p for g in o.param_groups for p in g["params"]] for o in optimizers)
    for step in range(steps):
        gradients = slopes(lead, generator)
        for weights in (lead, *others):
            for w, g in zip(weights, gradients, strict=True):
                w.grad = g.to(w.dtype)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = RATES[step * len(RATES) // steps]
            optimizer.step()
        read(step, lead, *others)


@pytest.mark.parametrize(("name", "options"), LONG_CASES)
def test_both_engines_are_torchs_to_1e_12_through_changes_of_rate(name, options):
    theirs = getattr(torch.optim, name)(starts(shapes=SMALL), lr=0.01, **options)
    ours = [getattr(optim, name)(starts(shapes=SMALL), lr=0.01, engine=e, **options) for e in ("cpu", "tensors")]

    def read(step, b, *others):
        for a in others:
            for w, v in zip(a, b, strict=True):
                torch.testing.assert_close(w, v, rtol=1e-12, atol=1e-12, msg=lambda m: f"step {step}: {m}")

    with all_of_it():
        descend_together([theirs, *ours], 90, read)


ULP = 2.0**-23


@pytest.mark.parametrize(("name", "options"), LONG_CASES)
def test_a_step_in_float32_is_the_exact_ones_to_within_seven_ulp(name, options):
    """At each of 100 steps weights and state are the float64 reference's, rounded: what differs is one step's rounding."""
    reference = getattr(torch.optim, name)(starts(shapes=SMALL), lr=0.01, **options)
    ours = [
        getattr(optim, name)(starts(torch.float32, SMALL), lr=0.01, engine=e, **options) for e in ("cpu", "tensors")
    ]
    worst = [0.0, 0.0]
    before = starts(shapes=SMALL)

    def read(step, exact, *others):
        for i, weights in enumerate(others):
            for w, v, old in zip(weights, exact, before, strict=True):
                size = torch.maximum(v.abs(), old.abs()).clamp(min=1e-3)
                worst[i] = max(worst[i], ((w - v).abs() / size).max().item() / ULP)
                w.copy_(v)
                for key, value in ours[i].state[w].items():
                    value.copy_(reference.state[v][key])
        for old, v in zip(before, exact, strict=True):
            old.copy_(v)

    with all_of_it():
        descend_together([reference, *ours], 100, read)
    assert 0.3 < max(worst) <= 7.0


@pytest.mark.parametrize(("name", "options"), LONG_CASES)
def test_in_float32_the_way_errs_no_more_than_torchs(name, options):
    """All are pushed by the same gradients, so errors are those of rounding alone: root mean square over weights and steps.

    They lie between 0.83 and 1.09 of torch's. (With `beta1 m + (1 - beta1) g` Adam's were 1.7: its shares are each rounded,
    those of `m + (1 - beta1) (g - m)` add up to one.)
    """
    shapes = [(40, 20), (300,)]
    reference = getattr(torch.optim, name)(starts(shapes=shapes), lr=0.01, **options)
    theirs = getattr(torch.optim, name)(starts(torch.float32, shapes), lr=0.01, **options)
    ours = [
        getattr(optim, name)(starts(torch.float32, shapes), lr=0.01, engine=e, **options) for e in ("cpu", "tensors")
    ]
    squares = [0.0, 0.0, 0.0]

    def read(step, exact, *others):
        for i, weights in enumerate(others):
            squares[i] += sum(((w - v) ** 2).sum().item() for w, v in zip(weights, exact, strict=True))

    descend_together([reference, theirs, *ours], 200, read)
    their_error, *errors = ((s / (1100 * 200)) ** 0.5 / ULP for s in squares)
    assert 0.1 < max(errors) < 1.15 * their_error


@pytest.mark.parametrize("clip", [{"clip_norm": 2.0}, {"clip_value": 0.5}, {"clip_norm": 2.0, "clip_value": 0.5}])
@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_clipping_is_torchs_value_first_then_norm(name, clip):
    a, b = starts(), starts()
    options = {"lr": 0.01, "weight_decay": 0.1}
    take_steps(getattr(optim, name)(a, **options, **clip), getattr(torch.optim, name)(b, **options), a, b, 30, **clip)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_in_float32_the_way_stays_close(name):
    a, b = starts(torch.float32), starts(torch.float32)
    options = {"lr": 0.01, "weight_decay": 0.1}
    take_steps(getattr(optim, name)(a, **options), getattr(torch.optim, name)(b, **options), a, b, tolerance=2e-4)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_complex_weights_are_pairs_of_reals_as_in_torch(name):
    a, b = (starts(torch.complex128, [(4, 3), (2,)]) for _ in range(2))
    options = {"lr": 0.01, "weight_decay": 0.1}
    take_steps(getattr(optim, name)(a, **options), getattr(torch.optim, name)(b, **options), a, b, steps=20)
    saved = {k: v.dtype for k, v in getattr(optim, name)(a, lr=0.1).state_dict()["state"].get(0, {}).items()}
    assert saved.get("exp_avg", torch.complex128) is torch.complex128


@pytest.mark.parametrize("name", ["Momentum", "Nesterov", "GradientDescent"])
def test_the_rules_by_their_own_names_are_torchs_sgd(name):
    options = {"Momentum": {"momentum": 0.9}, "Nesterov": {"momentum": 0.9}, "GradientDescent": {}}[name]
    a, b = starts(), starts()
    theirs = torch.optim.SGD(b, lr=0.01, nesterov=name == "Nesterov", **options)
    take_steps(getattr(optim, name)(a, lr=0.01, **options), theirs, a, b, steps=30)


LAYOUTS = [
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
    ("RMSprop", {}),
    ("Adam", {}),
    ("AdamW", {}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {"amsgrad": True}),
    ("NAdam", {}),
    ("RAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("Adagrad", {"initial_accumulator_value": 0.5}),
    ("Adadelta", {}),
    ("Adamax", {}),
]


@pytest.mark.parametrize(("name", "options"), LAYOUTS)
def test_torchs_state_is_continued_here(name, options):
    a, b = starts(), starts()
    ours, theirs = getattr(optim, name)(a, lr=0.01, **options), getattr(torch.optim, name)(b, lr=0.01, **options)
    take_steps(getattr(torch.optim, name)(a, lr=0.01, **options), theirs, a, b, steps=5)
    ours.load_state_dict(theirs.state_dict())
    take_steps(ours, theirs, a, b, steps=20)


@pytest.mark.parametrize(("name", "options"), LAYOUTS)
def test_our_state_is_continued_by_torch(name, options):
    a, b = starts(), starts()
    ours, theirs = getattr(optim, name)(a, lr=0.01, **options), getattr(torch.optim, name)(b, lr=0.01, **options)
    take_steps(ours, getattr(torch.optim, name)(b, lr=0.01, **options), a, b, steps=5)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))  # torch would share our tensors
    take_steps(ours, theirs, a, b, steps=20)


def looks(entry):
    """Shape and dtype of each tensor of state; how wide torch counts depends on the default dtype."""
    wide = {"step": "any", "mu_product": "any"}
    return {k: (v.shape, wide.get(k, v.dtype)) for k, v in entry.items() if v is not None}


@pytest.mark.parametrize(("name", "options"), LAYOUTS)
def test_the_layout_of_the_state_is_torchs(name, options):
    a, b = starts(), starts()
    ours, theirs = getattr(optim, name)(a, lr=0.01, **options), getattr(torch.optim, name)(b, lr=0.01, **options)
    take_steps(ours, theirs, a, b, steps=2)
    mine, its = ours.state_dict()["state"], theirs.state_dict()["state"]
    for number, entry in its.items():
        assert looks(mine.get(number, {})) == looks(entry)
    missing = {k for k in theirs.param_groups[0] if k not in groups.FLAGS} - {*ours.state_dict()["param_groups"][0]}
    assert missing <= ({"decoupled_weight_decay"} if name == "AdamW" else set())  # which torch's sets when it loads


@pytest.mark.parametrize("rule", ["momentum", "nesterov", "gradient_descent"])
def test_a_generic_optimisers_state_is_loaded_by_torchs_sgd(rule):
    a, b = starts(), starts()
    ours = optim.build(rule, a, lr=0.01)
    momentum = {} if rule == "gradient_descent" else {"momentum": 0.9}
    theirs = torch.optim.SGD(b, lr=0.01)
    take_steps(ours, torch.optim.SGD(b, lr=0.01, nesterov=rule == "nesterov", **momentum), a, b, steps=3)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))  # torch would share our tensors
    take_steps(ours, theirs, a, b, steps=5)


def test_groups_differ_in_rate_decay_and_constants():
    def grouped(w):
        return [
            {"params": w[:2]},
            {"params": w[2:4], "lr": 0.1, "weight_decay": 0.0},
            {"params": w[4:], "betas": (0.5, 0.9), "maximize": True},
        ]

    a, b = starts(), starts()
    take_steps(optim.AdamW(grouped(a), lr=0.01), torch.optim.AdamW(grouped(b), lr=0.01), a, b, steps=30)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_groups_that_differ_only_in_decay_are_torchs_though_they_move_together(name):
    def grouped(w):
        return [{"params": w[::2], "weight_decay": 0.3}, {"params": w[1::2], "weight_decay": 0.0}]

    a, b = starts(), starts()
    take_steps(
        getattr(optim, name)(grouped(a), lr=0.01), getattr(torch.optim, name)(grouped(b), lr=0.01), a, b, steps=30
    )


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
        take_steps(ours, theirs, a, b, steps=1)
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
        take_steps(ours, theirs, a, b, steps=1)
        mine.step()
        its.step()
    assert isinstance(ours.param_groups[0]["lr"], torch.Tensor)


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {}),
        ("SGD", {"momentum": 0.9, "dampening": 0.5}),
        ("NAdam", {"momentum_decay": 0.1}),
        ("Adagrad", {"initial_accumulator_value": 0.5}),
    ],
)
def test_parameters_whose_gradient_is_missing_stay_as_in_torch(name, options, ema, engine):
    a, b = starts(), starts()
    ours = getattr(optim, name)(a, lr=0.01, ema=ema, engine=engine, **options)
    theirs = getattr(torch.optim, name)(b, lr=0.01, **options)
    generator = torch.Generator().manual_seed(3)
    with all_of_it():
        for step in range(40):
            for i, (w, v, g) in enumerate(zip(a, b, slopes(b, generator), strict=True)):
                missing = (step + 1) % (i + 2) == 0 or step < i
                w.grad, v.grad = (None, None) if missing else (g.clone(), g.clone())
            ours.step()
            theirs.step()
            for w, v in zip(a, b, strict=True):
                torch.testing.assert_close(w, v, rtol=1e-12, atol=1e-12)
    if "step" in theirs.state[b[0]]:
        counts = [ours.state[w]["step"].item() for w in a]
        assert counts == [theirs.state[v]["step"].item() for v in b]
        assert len(set(counts)) > 1


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_buffer_that_torch_saved_says_that_the_first_step_is_behind(engine, ema):
    options = {"lr": 0.01, "momentum": 0.9, "dampening": 0.5}
    a, b = starts(), starts()
    theirs = torch.optim.SGD(b, **options)
    take_steps(torch.optim.SGD(a, **options), theirs, a, b, steps=3)
    saved = theirs.state_dict()
    del saved["state"][1], saved["state"][4]  # these two are to begin, in full, beside others that go on
    theirs.load_state_dict(copy.deepcopy(saved))
    ours = optim.SGD(a, **options, engine=engine, ema=ema)
    ours.load_state_dict(copy.deepcopy(saved))
    take_steps(ours, theirs, a, b, steps=5)


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
def test_momentum_that_a_group_turns_on_later_begins_with_the_whole_gradient_as_in_torch(engine):
    a, b = starts(), starts()
    ours, theirs = optim.SGD(a, lr=0.01, ema=0.9, engine=engine), torch.optim.SGD(b, lr=0.01)
    take_steps(ours, theirs, a, b, steps=3)
    for optimizer in (ours, theirs):
        optimizer.param_groups[0].update(momentum=0.9, dampening=0.5)
    take_steps(ours, theirs, a, b, steps=5)


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
def test_a_complex_sum_starts_with_the_value_in_both_parts(engine):
    a, b = (starts(torch.complex128, [(4, 3), (2,)]) for _ in range(2))
    options = {"lr": 0.1, "initial_accumulator_value": 0.5}
    take_steps(optim.Adagrad(a, **options, engine=engine), torch.optim.Adagrad(b, **options), a, b, steps=5)
