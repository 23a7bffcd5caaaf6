"""What PyTorch proves of its own optimisers (`TestOptimRenewed` of its test suite), proved of ours.

The inputs are PyTorch's: `OptimizerInfo` and `optim_db` come in its wheel. They stand under `_internal`, which promises nothing,
so where they cannot be imported this module is skipped and says so. PyTorch's tests that need a GPU, several of them or 72 GB
have no counterpart here; what else does not apply, and what is said in other words, stands in the tables below.
"""

import copy
import io
from types import SimpleNamespace

import hypothesis
import pytest
import torch
from covering import covering
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from thalweg import optim
from thalweg.errors import RuleError

_profile = hypothesis.settings.get_current_profile_name()
try:
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, OptimizerInfo, OptimizerInput, optim_db
except (ImportError, AttributeError) as missing:
    pytest.skip(f"PyTorch's inputs for optimisers cannot be imported here: {missing}", allow_module_level=True)
finally:  # importing them changes settings of the whole process
    hypothesis.settings.load_profile(_profile)
    torch.backends.__allow_nonbracketed_mutation_flag = True

CLASSES = [kind for kind in map(vars(optim).get, optim.__all__) if isinstance(kind, type)]
CLASSES = [kind for kind in CLASSES if issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer]

PLAIN = [{}, {"lr": 1e-3}, {"lr": torch.tensor(1e-3)}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "maximize": True}]
OWN = {
    "Momentum": [*PLAIN, {"momentum": 0.5}],
    "Nesterov": [*PLAIN, {"momentum": 0.5}],
    "Lion": [*PLAIN, {"betas": (0.5, 0.9)}],
    "Prodigy": [{}, {"lr": torch.tensor(1.0)}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "maximize": True}],
    "ScheduleFreeSGD": [{**kwargs, "lr": 0.02} for kwargs in PLAIN],  # its own rate, 1, is beyond the problem's edge
}
"""Inputs for what PyTorch has no class for; `PLAIN` for any other of these."""

MATRICES_ONLY = {"Muon"}
"""PyTorch's classes of this name take matrices alone, where ours move anything; with them ours is compared on a matrix."""

WITHOUT = {
    "supported_impls": (
        (),
        "how a step is calculated is chosen by `engine`: here the compiled one must match the plain one",
    ),
    "has_capturable_arg": (False, "part of a step is worked out on the host, which a captured graph would not repeat"),
    "only_supports_sparse_grads": (False, "no rule here takes sparse gradients alone"),
    "step_requires_closure": (False, "no rule here asks for the loss again"),
}
"""What does not apply to any optimiser here, in `OptimizerInfo`'s own terms, each with the reason."""

OUR_WORDS = {
    "a param group cannot have duplicate parameters": (RuleError, "stands twice in one group"),
    "Tensor lr must be 1-element": (RuleError, "a number or a tensor of one element"),
    "rho should be between 0 and 1": (RuleError, r"rho of adadelta must be a number in \[0, 1\)"),
    "lr_decay must be bigger than 0": (RuleError, "lr_decay of adagrad must be a number in"),
    "beta1 should be between 0 and 1": (RuleError, r"beta1 of \w+ must be a number in \[0, 1\)"),
    "beta2 should be between 0 and 1": (RuleError, r"beta2 of \w+ must be a number in \[0, 1\)"),
    "weight_decay should > 0": (RuleError, "`weight_decay` is -1, but it must be a finite number, zero or above"),
    "momentum should be between 0 and 1": (RuleError, r"momentum of \w+ must be a number in \[0, 1\)"),
    "momentum_decay should > 0": (RuleError, r"momentum_decay of nadam must be a number in \[0, inf\)"),
    "epsilon1 should be >= 0": (RuleError, r"eps1 of adafactor must be a number in \(0, inf\)"),
    "invalid d": (RuleError, r"d of adafactor must be a number in \[1, inf\)"),
    "invalid beta2_decay": (RuleError, r"beta2_decay of adafactor must be a number in \(-inf, 0\]"),
    "only support `original` and `match_rms_adamw`": (
        RuleError,
        "is 'match_rms_adamw' or 'original' or None, not 'arbitrary'",
    ),
    "does not support complex parameters": (
        RuleError,
        "parameter 0 is complex, and (adafactor|muon) moves real matrices only",
    ),
    "betas must be either both floats or both Tensors": (RuleError, "must be all numbers or all tensors"),
}
"""Where our error says it in other words, or is another than PyTorch's, by the input's description."""

TAKEN = {
    "lr as Tensor doesn't work with foreach & not capturable": "`foreach` changes nothing",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": "likewise",
    "only support 2D parameters": "what is no matrix is moved by AdamW",
}
"""Inputs that PyTorch refuses and that are no error here."""

THEIRS = {info.name: info for info in optim_db}


def own_inputs(kind):
    def inputs(device, dtype=None):
        del device, dtype
        return [OptimizerInput(None, copy.deepcopy(kwargs), str(kwargs)) for kwargs in OWN.get(kind.__name__, PLAIN)]

    return inputs


def inputs_of(kind):
    theirs = THEIRS.get(kind.__name__)

    def inputs(device, dtype=None):
        return theirs.optim_inputs_func(device)

    return inputs if theirs and kind.__name__ not in OWN else own_inputs(kind)


INFOS = [
    OptimizerInfo(
        kind,
        optim_inputs_func=inputs_of(kind),
        optim_error_inputs_func=THEIRS[kind.__name__].optim_error_inputs_func if kind.__name__ in THEIRS else None,
        scheduler_inputs=THEIRS[kind.__name__ if kind.__name__ in THEIRS else "Adam"].scheduler_inputs,
        **{name: value for name, (value, _) in WITHOUT.items()},
        not_og_supported_flags=("maximize", "amsgrad", "nesterov", "centered"),
    )
    for kind in CLASSES
]

every_class = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
CASES = [
    pytest.param(info, i, id=f"{info.name}-{one.desc}")
    for info in INFOS
    for i, one in enumerate(info.optim_inputs_func("cpu"))
]
every_input = pytest.mark.parametrize(("info", "place"), CASES)
ENGINES = ["cpu", "tensors"]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


def kwargs_of(info, place):
    """Fresh ones each time: a schedule writes into a tensor that is a rate."""
    return info.optim_inputs_func("cpu")[place].kwargs


def problem(info, kwargs, dtype=torch.float32, strided=False, params=lambda weight, bias: [weight, bias]):
    """A linear fit, what PyTorch's tests descend: ten outputs of five inputs, to nought."""
    if strided:
        weight, bias = torch.randn(10, 5, 2, dtype=dtype)[..., 0], torch.randn(10, 2, dtype=dtype)[..., 0]
    else:
        weight, bias = torch.randn(10, 5, dtype=dtype), torch.randn(10, dtype=dtype)
    weight, bias, x = nn.Parameter(weight), nn.Parameter(bias), torch.randn(5, dtype=dtype)
    assert weight.is_contiguous() is not strided
    optimizer = info.optim_cls(params(weight, bias), **kwargs)

    def closure():
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).square().sum()
        loss.backward()
        return loss

    return SimpleNamespace(weight=weight, bias=bias, optimizer=optimizer, closure=closure)


def take_steps(one, schedules=(), steps=20):
    """Go, and give the loss before and after."""
    before = float(one.closure().detach())
    for _ in range(steps):
        loss = one.closure()
        one.optimizer.step()
        for schedule in schedules:
            schedule.step(*([loss.detach()] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else []))
    return before, float(one.closure().detach())


def goes_right(before, after, kwargs):
    return after > before if kwargs.get("maximize") else after < before


def contents(state_dict, names=True):
    """A state dict as plain values, to be compared bit for bit."""

    def plain(value):
        if isinstance(value, torch.Tensor):
            return value.dtype, value.shape, value.tolist()
        if isinstance(value, dict):
            return {key: plain(held) for key, held in value.items() if names or key != "param_names"}
        return [*map(plain, value)] if isinstance(value, list | tuple) else value

    return plain(state_dict)


# Errors


@pytest.mark.parametrize(
    ("info", "place"),
    [
        pytest.param(info, i, id=f"{info.name}-{error.optimizer_error_input.desc}")
        for info in INFOS
        if info.optim_error_inputs_func is not None
        for i, error in enumerate(info.optim_error_inputs_func("cpu", torch.float32))
    ],
)
def test_what_torch_refuses_is_refused_here(info, place):
    error = info.optim_error_inputs_func("cpu", torch.float32)[place]
    given = error.optimizer_error_input
    params = [nn.Parameter(torch.randn(2, 3))] if given.params is None else given.params
    if given.desc in TAKEN:
        for engine in ("cpu", "tensors"):
            before = [p.detach().clone() for p in params]
            optimizer = info.optim_cls(params, **given.kwargs, engine=engine)
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
            assert all((p < b).all() for p, b in zip(params, before, strict=True))
        return
    kind, words = OUR_WORDS.get(given.desc, (error.error_type, error.error_regex))
    if issubclass(
        kind, RuleError
    ):  # a caller who waits for a ValueError gets one; what torch finds at a step is found before
        assert issubclass(kind, ValueError)
        assert (
            issubclass(error.error_type, (ValueError, UserWarning)) or error.error_on is OptimizerErrorEnum.STEP_ERROR
        )
    with pytest.raises(kind, match=words):
        info.optim_cls(params, **given.kwargs)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("capturable", "part of a step is worked out on the host"),
        ("differentiable", "no gradient flows through a step here"),
    ],
)
@every_class
def test_a_flag_of_torchs_may_be_off_and_is_refused_with_the_reason_where_on(info, flag, words):
    for off in (None, False):
        w = torch.ones(3)
        optimizer = info.optim_cls([w], **{flag: off})
        w.grad = torch.ones(3)
        optimizer.step()
        assert (w < 1.0).all()
    with pytest.raises(RuleError, match=f"`{flag}` cannot be True here: .*{words}.*take the class of torch.optim"):
        info.optim_cls([torch.ones(3)], **{flag: True})
    with pytest.raises(RuleError, match=f"`{flag}` cannot be True here"):
        info.optim_cls([{"params": [torch.ones(3)], flag: True}])


@pytest.mark.parametrize("flag", ["foreach", "fused"])
@every_class
def test_a_flag_of_torchs_that_names_another_way_to_the_same_step_changes_no_bit(info, flag):
    ends = []
    for given in ({}, {flag: True}):
        w = torch.linspace(-1, 1, 12).reshape(4, 3)
        optimizer = info.optim_cls([w], **given)
        for _ in range(3):
            w.grad = w.sin() + 0.1
            optimizer.step()
        ends.append(w)
        assert optimizer.param_groups[0][flag] is given.get(flag)
    assert torch.equal(*ends)


@every_class
def test_a_sparse_gradient_is_taken_where_torch_takes_it_and_else_refused_with_what_to_do(info):
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = info.optim_cls(table.parameters())
    table(torch.tensor([1])).sum().backward()
    before = table.weight.detach().clone()
    known = THEIRS.get("SGD" if info.name in ("GradientDescent", "Momentum", "Nesterov") else info.name)
    if known is not None and known.supports_sparse:
        optimizer.step()
        assert [*(table.weight != before).any(1)] == [False, True, False, False, False]
    else:
        with pytest.raises(
            RuleError, match=r"sparse, which .* does not take, but SGD and Adagrad do: make the embedding"
        ):
            optimizer.step()
        assert torch.equal(table.weight, before)


# The right direction


@pytest.mark.parametrize(("info", "place", "engine", "strided"), covering(CASES, ENGINES, [False, True]))
def test_it_goes_the_right_direction(info, place, engine, strided):
    kwargs = kwargs_of(info, place)
    assert goes_right(*take_steps(problem(info, {**kwargs, "engine": engine}, strided=strided)), kwargs)


@pytest.mark.parametrize(("info", "place", "strided"), covering(CASES, [False, True]))
def test_it_goes_the_right_direction_with_torchs_schedules(info, place, strided):
    for makers in info.scheduler_inputs:
        kwargs = kwargs_of(info, place)
        one = problem(info, kwargs, strided=strided)
        assert goes_right(*take_steps(one, [make(one.optimizer) for make in makers]), kwargs)


@every_class
def test_groups_with_schedules_go_the_right_direction(info):
    for makers in info.scheduler_inputs:
        one = problem(
            info,
            info.optim_inputs_func("cpu")[0].kwargs,
            params=lambda weight, bias: [{"params": [weight]}, {"params": [bias], "lr": 0.01}],
        )
        assert goes_right(*take_steps(one, [make(one.optimizer) for make in makers]), {})


@every_class
def test_a_rate_in_a_tensor_is_the_rate(info):
    for place in range(len(info.optim_inputs_func("cpu"))):
        kwargs = {**kwargs_of(info, place), "lr": 0.125}
        torch.manual_seed(5)
        one = problem(info, kwargs)
        torch.manual_seed(5)
        other = problem(info, {**kwargs, "lr": torch.tensor(0.125)})
        for _ in range(5):
            take_steps(one, steps=1)
            take_steps(other, steps=1)
            assert torch.equal(other.weight, one.weight)
            assert torch.equal(other.bias, one.bias)
        assert isinstance(other.optimizer.param_groups[0]["lr"], torch.Tensor)


@every_input
def test_a_groups_own_weight_decay_goes_the_right_direction(info, place):
    kwargs = kwargs_of(info, place)
    one = problem(
        info,
        {},
        params=lambda weight, bias: [
            {"params": [weight], **kwargs},
            {"params": [bias], **kwargs, "weight_decay": 0.0},
        ],
    )
    assert goes_right(*take_steps(one), kwargs)
    assert one.optimizer.param_groups[1]["weight_decay"] == 0.0


@every_input
def test_a_group_whose_rate_is_next_to_nothing_stays(info, place):
    kwargs = {"lr": info.optim_cls([torch.zeros(1)]).defaults["lr"], **kwargs_of(info, place)}
    still = nn.Parameter(torch.randn(2))
    start = still.detach().clone()
    one = problem(
        info, {"lr": 1e-28}, params=lambda weight, bias: [{"params": [weight, bias], **kwargs}, {"params": [still]}]
    )
    still.grad = torch.rand(2)
    closure = one.closure

    def with_still():
        loss = closure()
        still.grad = torch.rand(2)
        return loss

    one.closure = with_still
    assert goes_right(*take_steps(one), kwargs)
    assert torch.equal(still.detach(), start)


# Complex parameters are pairs of reals; a rule of matrices refuses them, and a rule that adds up over all weights adds up
# two tensors in another order than one.


def rule_of(info):
    # By tensors: while tests are collected nothing is to be compiled, in a thread that may come between a test's warning filters.
    return info.optim_cls([torch.zeros(1)], engine="tensors").rule


ELEMENTWISE = [case for case in CASES if not rule_of(case.values[0]).is_matrix]


@pytest.mark.parametrize(("info", "place", "engine"), covering(ELEMENTWISE, ENGINES))
def test_complex_parameters_move_as_their_real_and_imaginary_parts(info, place, engine):
    kwargs = {**kwargs_of(info, place), "engine": engine}
    complexes = [torch.randn(10, 5, dtype=torch.complex64), torch.randn(10, dtype=torch.complex64), torch.randn(10, 5)]
    reals = [torch.view_as_real(p).clone() if p.is_complex() else p.clone() for p in complexes]
    one, other = info.optim_cls(complexes, **kwargs), info.optim_cls(reals, **copy.deepcopy(kwargs))
    for _ in range(3):
        for c, r in zip(complexes, reals, strict=True):
            r.grad = torch.randn_like(r)
            c.grad = torch.view_as_complex(r.grad.clone()) if c.is_complex() else r.grad.clone()
        one.step()
        other.step()
        for c, r in zip(complexes, reals, strict=True):
            torch.testing.assert_close(torch.view_as_real(c) if c.is_complex() else c, r)


@pytest.mark.parametrize(("info", "place"), [case for case in ELEMENTWISE if rule_of(case.values[0]).sums is None])
def test_a_complex_parameter_descends_as_two_real_ones(info, place):
    def rosenbrock(z):
        x, y = z
        return ((1 - x) ** 2 + 100 * (y - x**2) ** 2).abs()

    z = torch.randn(2, dtype=torch.complex64, requires_grad=True)
    parts = [part.detach().clone().requires_grad_() for part in (z.real, z.imag)]
    one, two = info.optim_cls([z], **kwargs_of(info, place)), info.optim_cls(parts, **kwargs_of(info, place))
    for _ in range(3):
        one.zero_grad()
        two.zero_grad()
        with torch.no_grad():  # the least difference grows in such a valley
            parts[0].copy_(z.real)
            parts[1].copy_(z.imag)
        rosenbrock(z).backward()
        rosenbrock(torch.complex(*parts)).backward()
        parts[0].grad.copy_(z.grad.real)
        parts[1].grad.copy_(z.grad.imag)
        one.step()
        two.step()
        torch.testing.assert_close(z.detach(), torch.complex(*parts).detach())


# One engine is as good as the other, and as torch


def network(dtype):
    torch.manual_seed(1)
    layers = [nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Sigmoid()]
    model = nn.Sequential(*layers).to(dtype)
    single = torch.rand((), dtype=dtype, requires_grad=True)
    return model, single, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=dtype).reshape(3, 2)


def compare(models, singles, optimizers, x, rtol, atol):
    """Seven steps: no gradients at the third, a layer frozen for two, and beside the model a parameter without dimensions."""
    params = [[*model.parameters(), single] for model, single in zip(models, singles, strict=True)]
    for step in range(7):
        for model, single, optimizer in zip(models, singles, optimizers, strict=True):
            optimizer.zero_grad()
            if step in (3, 5):
                model[2].requires_grad_(step == 5)
            if step != 2:
                model(x).sum().backward()
                single.grad = torch.full_like(single, 0.5)
            optimizer.step()
        for pair in zip(*params, strict=True):
            torch.testing.assert_close(*pair, rtol=rtol, atol=atol, msg=lambda m, s=step: f"step {s}: {m}")
            mine, its = (
                {key: v for key, v in o.state.get(p, {}).items() if v is not None}
                for o, p in zip(optimizers, pair, strict=True)
            )
            assert set(mine) == set(its)
            for key in mine:
                torch.testing.assert_close(mine[key], its[key], rtol=rtol, atol=atol, check_dtype=False)


NEAR = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1.3e-6, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float16: (1e-3, 1e-5),
}

LESS_NEAR = {"NAdam": (1e-5, 1e-5), "Muon": (1e-5, 1e-5)}
"""PyTorch keeps NAdam's product of momenta in float32, and multiplies Muon's rate there where it is a tensor."""

LIKE_TORCH = {"Muon": {"half": True, "adjust_lr_fn": "original"}}
"""Options under which ours calculates as PyTorch's does by default: Muon's matrices are orthogonalised in bfloat16 there."""


@pytest.mark.parametrize(("info", "place", "dtype"), covering(CASES, NEAR))
def test_the_compiled_engine_matches_the_plain_one_with_empty_and_missing_gradients(info, place, dtype):
    models, singles, optimizers = [], [], []
    for engine in ("cpu", "tensors"):
        model, single, x = network(dtype)
        models.append(model)
        singles.append(single)
        optimizers.append(info.optim_cls([*model.parameters(), single], **kwargs_of(info, place), engine=engine))
    compare(models, singles, optimizers, x, *NEAR[dtype])


@pytest.mark.parametrize(
    ("info", "place", "engine", "dtype"),
    covering(
        [case for case in CASES if case.values[0].name in {*THEIRS} - {*OWN}], ENGINES, [torch.float64, torch.float32]
    ),
)
def test_it_matches_torchs_own_loop(info, place, engine, dtype):
    name, models, singles, optimizers = info.name, [], [], []
    ours = {"engine": engine, **LIKE_TORCH.get(name, {})}
    for kind, options in ((info.optim_cls, ours), (getattr(torch.optim, name), {})):
        model, single, x = network(dtype)
        models.append(model)
        singles.append(single)
        params = [p for p in (*model.parameters(), single) if p.ndim == 2 or name not in MATRICES_ONLY]
        optimizers.append(kind(params, **kwargs_of(info, place), **options))
    compare(models, singles, optimizers, x, *LESS_NEAR.get(name, NEAR[dtype]))


@pytest.mark.parametrize(("info", "place", "engine"), covering(CASES, ENGINES))
def test_dtypes_mix_in_one_optimiser(info, place, engine):
    kwargs = {"weight_decay": 0.1, **kwargs_of(info, place), "engine": engine}
    start, slope = torch.rand(2, 3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
    params = [start.to(dtype) for dtype in NEAR]
    optimizer = info.optim_cls(params, **kwargs)
    for p in params:
        p.grad = slope.to(p.dtype)
    for _ in range(3):
        optimizer.step()
    assert [p.dtype for p in params] == [*NEAR]
    for p in params[1:]:
        torch.testing.assert_close(p.double(), params[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
@every_class
def test_the_default_dtype_changes_no_bit_and_the_count_stays_float32(info, default):
    ends = []
    for dtype in (torch.float32, default):
        torch.manual_seed(2)
        w = torch.rand(5, 3, dtype=torch.float32)
        optimizer = info.optim_cls([w], ema=None, clip_norm=1.0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            for _ in range(3):
                w.grad = torch.ones_like(w)
                optimizer.step()
        finally:
            torch.set_default_dtype(before)
        ends.append(w)
        assert optimizer.state[w].get("step", torch.tensor(0.0, dtype=torch.float32)).dtype is torch.float32
    assert torch.equal(*ends)


# Steps that do nothing


@every_class
def test_on_the_meta_device_a_step_is_refused_and_goes_on_when_the_model_is_made_real(info):
    with torch.device("meta"):
        model = nn.Linear(2, 3)
    optimizer = info.optim_cls(model.parameters())
    for p in model.parameters():
        p.grad = torch.rand_like(p)
    with pytest.raises(RuleError, match=r"parameter 0 of group 0 is on the meta device.*call to_empty\(\)"):
        optimizer.step()
    optimizer.zero_grad()
    model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.ones_(p)
        p.grad = torch.ones_like(p)
    optimizer.step()  # the old parameters have no gradient
    optimizer = info.optim_cls(model.parameters())
    optimizer.step()
    assert all((p < 1).all() for p in model.parameters())


@every_class
def test_a_step_without_gradients_moves_nothing(info):
    for place in range(len(info.optim_inputs_func("cpu"))):
        params = [torch.randn(2, 3) for _ in range(2)]
        before = [p.clone() for p in params]
        optimizer = info.optim_cls(params, **kwargs_of(info, place))
        assert optimizer.step(lambda: torch.tensor([1.0])) == 1.0
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
        assert not any(optimizer.state.values())


@every_class
def test_a_gradient_of_nought_moves_nothing_but_by_decay(info):
    for place in range(len(info.optim_inputs_func("cpu"))):
        kwargs = {**kwargs_of(info, place), "weight_decay": 0.0}
        w = torch.randn(5, 1, requires_grad=True)
        before = w.detach().clone()
        optimizer = info.optim_cls([w], **kwargs)
        w.grad = torch.zeros_like(w)
        optimizer.step(lambda: torch.tensor([1.0]))
        assert torch.equal(w.detach(), before)


@every_class
def test_whoever_has_taken_a_step_has_state_where_the_rule_has_any(info):
    for place in range(len(info.optim_inputs_func("cpu"))):
        model = nn.Linear(5, 5, bias=info.name not in MATRICES_ONLY)
        optimizer = info.optim_cls(model.parameters(), **kwargs_of(info, place))
        model(torch.rand(2, 5)).sum().backward()
        optimizer.step()
        theirs = getattr(torch.optim, info.name, None) if info.name not in OWN else None
        if theirs is not None:
            other = theirs(model.parameters(), **kwargs_of(info, place))
            other.step()
            for p in model.parameters():
                assert set(optimizer.state.get(p, {})) == {k for k, v in other.state[p].items() if v is not None}
        elif optimizer.rule.state:
            assert all(optimizer.state[p] for p in model.parameters())


# State dicts


def named(params, has_names):
    return [(f"name{i}", p) for i, p in enumerate(params)] if has_names else params


@pytest.mark.parametrize(("info", "place", "first", "second"), covering(CASES, [False, True], [False, True]))
def test_a_loaded_optimiser_goes_on_bit_for_bit_and_its_state_is_the_same(info, place, first, second):
    kwargs = kwargs_of(info, place)
    one = problem(info, kwargs, params=lambda weight, bias: named([weight, bias], first))
    take_steps(one, steps=10)
    torch.manual_seed(1)  # the same input
    other = problem(info, kwargs_of(info, place), params=lambda weight, bias: named([weight, bias], second))
    with torch.no_grad():
        other.weight.copy_(one.weight)
        other.bias.copy_(one.bias)
    other.optimizer.load_state_dict(copy.deepcopy(one.optimizer.state_dict()))
    for _ in range(10):
        take_steps(one, steps=1)
        take_steps(other, steps=1)
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.bias, other.bias)
    saved = contents(one.optimizer.state_dict(), names=False)
    assert saved == contents(other.optimizer.state_dict(), names=False)
    other.optimizer.param_groups.extend(other.optimizer.param_groups)
    assert saved["param_groups"][-1] == contents(other.optimizer.state_dict(), names=False)["param_groups"][-1]
    assert ("param_names" in other.optimizer.param_groups[0]) is (first or second)


@every_class
def test_a_state_from_before_an_option_existed_is_loaded(info):
    for place in range(len(info.optim_inputs_func("cpu"))):
        one = problem(info, kwargs_of(info, place))
        take_steps(one, steps=3)
        old = copy.deepcopy(one.optimizer.state_dict())
        deleted = [
            group.pop(flag) for group in old["param_groups"] for flag in info.not_og_supported_flags if flag in group
        ]
        assert deleted
        one.optimizer.load_state_dict(old)
        before = one.weight.detach().clone()
        take_steps(one, steps=1)
        assert not torch.equal(one.weight.detach(), before)


@every_class
def test_a_state_that_another_implementation_of_torchs_saved_is_loaded(info):
    one = problem(info, {})
    take_steps(one, steps=2)
    saved = copy.deepcopy(one.optimizer.state_dict())
    saved["param_groups"][0].update(foreach=True, fused=True, capturable=True, differentiable=False)
    for entry in saved["state"].values():
        if "step" in entry:
            entry["step"] = entry["step"].double()
    one.optimizer.load_state_dict(saved)
    before = one.weight.detach().clone()
    take_steps(one, steps=1)
    assert not torch.equal(one.weight.detach(), before)
    assert all(e["step"].dtype is torch.float32 for e in one.optimizer.state.values() if "step" in e)


@pytest.mark.parametrize("has_names", [False, True])
@every_class
def test_what_a_file_gives_back_is_what_was_saved_with_weights_only(info, has_names):
    for place in range(len(info.optim_inputs_func("cpu"))):
        one = problem(info, kwargs_of(info, place), params=lambda weight, bias: named([weight, bias], has_names))
        take_steps(one, steps=3)
        saved = one.optimizer.state_dict()
        file = io.BytesIO()
        torch.save(saved, file)
        for options in ({}, {"weights_only": True}):
            file.seek(0)
            assert contents(torch.load(file, **options)) == contents(saved)


@every_class
def test_a_count_that_was_saved_as_a_number_is_loaded(info):
    for place in range(len(info.optim_inputs_func("cpu"))):
        one = problem(info, kwargs_of(info, place))
        take_steps(one, steps=3)
        saved = copy.deepcopy(one.optimizer.state_dict())
        for entry in saved["state"].values():
            if "step" in entry:
                entry["step"] = entry["step"].item()
        one.optimizer.load_state_dict(saved)
        take_steps(one, steps=1)
        assert all(float(e["step"]) == 4.0 for e in one.optimizer.state.values() if "step" in e)


SHARED = [case for case in CASES if case.values[0].name in {*THEIRS} - {*OWN}]


@pytest.mark.parametrize("way", ["ours", "theirs"])
@pytest.mark.parametrize(("info", "place"), SHARED)
def test_torchs_class_and_ours_load_each_others_file(info, place, way):
    theirs = OptimizerInfo(getattr(torch.optim, info.name), optim_inputs_func=info.optim_inputs_func)
    options = LIKE_TORCH.get(info.name, {})
    saver, loader = (info, theirs) if way == "ours" else (theirs, info)
    saving, loading = (options, {}) if way == "ours" else ({}, options)
    chosen = (lambda weight, bias: [weight]) if info.name in MATRICES_ONLY else (lambda weight, bias: [weight, bias])
    one = problem(saver, {**kwargs_of(info, place), **saving}, dtype=torch.float64, params=chosen)
    take_steps(one, steps=3)
    file = io.BytesIO()
    torch.save(one.optimizer.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    other = problem(loader, loading, dtype=torch.float64, params=chosen)
    with torch.no_grad():
        other.weight.copy_(one.weight)
        other.bias.copy_(one.bias)
    other.optimizer.load_state_dict(torch.load(file, weights_only=True))
    take_steps(one, steps=3)
    take_steps(other, steps=3)
    rtol, atol = LESS_NEAR.get(info.name, NEAR[torch.float64])
    torch.testing.assert_close(other.weight, one.weight, rtol=rtol, atol=atol)
    torch.testing.assert_close(other.bias, one.bias, rtol=rtol, atol=atol)


# Hooks


def mark(optimizer):
    optimizer.state["mark"] = 1


def unmark(optimizer, state_dict):
    state_dict["was_marked"] = state_dict["state"].pop("mark", 0) == 1
    return state_dict


@every_class
def test_hooks_run_before_and_after_a_state_is_saved(info):
    for before, after, expected in ((True, False, None), (False, True, False), (True, True, True)):
        optimizer = info.optim_cls([torch.rand(2, 3)])
        if before:
            optimizer.register_state_dict_pre_hook(mark)
        if after:
            optimizer.register_state_dict_post_hook(unmark)
        saved = optimizer.state_dict()
        assert saved.get("was_marked") is expected
        assert ("mark" in saved["state"]) is (before and not after)


def to_two(optimizer, state_dict):
    del optimizer
    state_dict["param_groups"][0]["lr"] = 0.002


def to_three(optimizer, state_dict):
    del optimizer
    changed = copy.deepcopy(state_dict)
    changed["param_groups"][0]["lr"] = 0.003
    return changed


@every_class
def test_hooks_before_loading_rewrite_what_is_loaded_in_their_order(info):
    optimizer = info.optim_cls([torch.rand(2, 3)])
    saved = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(to_two)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.002
    optimizer.register_load_state_dict_pre_hook(to_three, prepend=True)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.002
    optimizer.register_load_state_dict_pre_hook(to_three)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.003


@every_class
def test_hooks_after_loading_see_what_was_loaded_and_what_they_put_there_stays(info):
    w = torch.rand(2, 3, dtype=torch.bfloat16)
    optimizer = info.optim_cls([w])
    w.grad = torch.ones_like(w)
    optimizer.step()
    seen = []

    def look(loaded):
        kept = [v for v in loaded.state[w].values() if isinstance(v, torch.Tensor) and v.ndim]
        seen.append([v.dtype for v in kept])
        for v in kept:
            v.fill_(7.0)

    optimizer.register_load_state_dict_post_hook(look)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(dtype is torch.float32 for dtype in seen[0])  # not rounded to the weights' sixteen bits
    kept = [v for v in optimizer.state[w].values() if isinstance(v, torch.Tensor) and v.ndim]
    assert all((v == 7.0).all() for v in kept)
    optimizer.step()


@every_class
def test_a_hook_may_make_a_state_loadable_that_is_not(info):
    one, other = (info.optim_cls([torch.rand(2, 3)], lr=0.5) for _ in range(2))
    saved = one.state_dict()
    saved["param_groups"][0]["lr"] = "half"
    with pytest.raises(RuleError, match="`lr` is 'half'"):
        other.load_state_dict(saved)
    other.register_load_state_dict_pre_hook(to_two)
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.002


@every_class
def test_hooks_of_the_step_are_called_until_they_are_removed(info):
    seen = []
    for register in ("register_step_pre_hook", "register_step_post_hook"):
        optimizer = info.optim_cls([torch.ones(2)])
        handle = getattr(optimizer, register)(lambda o, a, k, seen=seen: seen.append(o))
        optimizer.step()
        optimizer.step()
        handle.remove()
        optimizer.step()
        assert seen == [optimizer] * 2
        seen.clear()


@every_class
def test_hooks_of_all_optimisers_stand_outside_those_of_one(info):
    params, seen = [torch.ones(2)], []
    one, other = info.optim_cls(params), torch.optim.SGD(params)
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("all before")),
        register_optimizer_step_post_hook(lambda *_: seen.append("all after")),
    ]
    for optimizer in (one, other):
        handles.append(optimizer.register_step_pre_hook(lambda *_: seen.append("before")))
        handles.append(optimizer.register_step_post_hook(lambda *_: seen.append("after")))
    order = ["all before", "before", "after", "all after"]
    try:
        for optimizer in (one, other, one):
            optimizer.step()
            assert seen == order
            seen.clear()
    finally:
        for handle in handles:
            handle.remove()
    one.step()
    other.step()
    assert seen == []


# Printing and copying


@every_class
def test_it_can_be_printed(info):
    for place in range(len(info.optim_inputs_func("cpu"))):
        kwargs = kwargs_of(info, place)
        text = repr(info.optim_cls([nn.Parameter(torch.randn(2, 3)) for _ in range(2)], **kwargs))
        for name, value in kwargs.items():
            assert f"    {name}: {value}\n" in text


@every_class
def test_a_copy_has_all_public_attributes(info):
    for place in range(len(info.optim_inputs_func("cpu"))):
        one = problem(info, kwargs_of(info, place))
        take_steps(one, steps=3)

        def public(optimizer):
            return {name for name in vars(optimizer) if not name.startswith("_")}

        assert public(copy.deepcopy(one.optimizer)) == public(one.optimizer)
