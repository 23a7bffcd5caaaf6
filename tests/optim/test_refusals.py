"""What no step can be taken on: one clear error before anything is touched, and the descent goes on once it is mended."""

import copy
import math
import re
import warnings

import pytest
import torch
from torch import nn

from thalweg import optim
from thalweg.errors import RuleError, ThalwegError
from thalweg.optim.engines.validate import why_invalid

CLASSES = [kind for kind in map(vars(optim).get, optim.__all__) if isinstance(kind, type)]
CLASSES = [kind for kind in CLASSES if issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer]
every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
both_engines = pytest.mark.parametrize("engine", ["cpu", "tensors"])


def rule_of(kind):
    return kind([torch.zeros(1)], **({"momentum": 0.5} if kind is optim.SGD else {})).rule


def test_a_refusal_is_caught_as_ours_and_as_torchs():
    for expected in (ThalwegError, ValueError):
        with pytest.raises(expected):
            optim.AdamW([torch.zeros(1)], lr=-1.0)


# Settings


def outside(bounds):
    """Values just beyond an interval, and what is no number."""
    low = bounds.low if bounds.low_open else math.nextafter(bounds.low, -math.inf)
    high = bounds.high if bounds.high_open else math.nextafter(bounds.high, math.inf)
    return [value for value in (low, high) if math.isfinite(value)] + [math.nan, math.inf, "0.5", None]


RANGES = [
    pytest.param(kind, name, id=f"{kind.__name__}-{name}")
    for kind in CLASSES
    for name, default in rule_of(kind).constants.items()
    if name in rule_of(kind).ranges and kind is not optim.SGD
]


@pytest.mark.parametrize(("kind", "name"), RANGES)
def test_a_constant_outside_its_range_is_refused_by_its_name_and_range(kind, name):
    rule = rule_of(kind)
    for value in outside(rule.ranges[name]):
        words = rf"^{name} of {rule.name} must be a (whole )?number in .*, not "
        with pytest.raises(RuleError, match=words):
            optim.Optimizer([torch.zeros(1)], rule, lr=0.1, **{name: value})
        if value is not None:  # in a group None is the default, as in torch's
            with pytest.raises(RuleError, match=words):
                kind([{"params": [torch.zeros(1)], name: value}])


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "0.1", None, [0.1], True, torch.ones(2)], ids=str)
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@every_class
def test_a_rate_that_is_no_number_from_zero_up_is_refused(kind, name, value):
    if (name, value) == ("weight_decay", None):  # the rule's own
        return
    with pytest.raises(RuleError, match=f"^`{name}` is .*, but it must be"):
        kind([torch.zeros(1)], **{name: value})
    group = {"params": [torch.zeros(1)], name: value}
    optimizer = kind([torch.zeros(1)])
    with pytest.raises(RuleError, match=f"^`{name}` is .*, but it must be"):
        optimizer.add_param_group(dict(group))
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, "1", [1.0]], ids=str)
@pytest.mark.parametrize("name", ["clip_norm", "clip_value", "ema"])
def test_a_bound_that_is_no_number_above_zero_is_refused(name, value):
    with pytest.raises(RuleError, match=f"^`{name}` is .*, but it must be"):
        optim.AdamW([torch.zeros(1)], **{name: value})


@every_class
def test_an_unknown_option_is_refused_with_the_nearest_name(kind):
    known = [*kind([torch.zeros(1)]).param_groups[0]]
    own = [name for name in known if name not in ("params", "lr", "weight_decay", "maximize")]
    for name in own:
        typo = name[:-1] + "_" + name[-1] if len(name) > 3 else None
        if typo is not None:
            with pytest.raises(RuleError, match=rf"{typo}.*Did you mean '{name}'\?"):
                kind([torch.zeros(1)], **{typo: 0.5})
    with pytest.raises(RuleError, match=r"no (constant|option) 'colour'"):
        kind([torch.zeros(1)], colour="blue")


@pytest.mark.parametrize("name", ["clip_norm", "clip_value", "ema", "cautious", "on_nonfinite", "engine"])
def test_what_belongs_to_the_whole_optimiser_is_refused_in_a_group_where_it_would_do_nothing(name):
    with pytest.raises(RuleError, match=f"names '{name}', which belongs to the optimiser: give it beside the groups"):
        optim.AdamW([{"params": [torch.zeros(1)], name: 0.5}])


# Parameters


@every_class
def test_parameters_that_cannot_be_are_refused(kind):
    leaf = nn.Parameter(torch.ones(2))
    for params, error, words in [
        ([], ValueError, "empty parameter list"),
        (iter([]), ValueError, "empty parameter list"),
        ([leaf * 2], ValueError, "non-leaf"),
        ([leaf, leaf], RuleError, "parameter 1 stands twice in one group"),
        ([("first", leaf), ("again", leaf)], RuleError, "again stands twice in one group"),
        ([{"params": [leaf]}, {"params": [leaf]}], ValueError, "more than one parameter group"),
        ([{"weights": [leaf]}], RuleError, "no 'params', only 'weights'"),
        (leaf, TypeError, "iterable of Tensors or dicts"),
        ([{"params": {leaf}}], TypeError, "ordered collections"),
        (["weight"], TypeError, "can only optimize Tensors"),
        ([torch.ones(2, dtype=torch.int64)], RuleError, "parameter 0 is torch.int64"),
        ([("table", torch.eye(2).to_sparse())], RuleError, "table is torch.float32, torch.sparse_coo"),
    ]:
        with pytest.raises(error, match=words):
            kind(params)
    assert leaf.grad is None
    assert torch.equal(leaf.detach(), torch.ones(2))


def test_a_generator_that_was_read_before_has_no_parameters_left():
    parameters = nn.Linear(2, 1).parameters()
    optim.AdamW(parameters)
    with pytest.raises(ValueError, match="empty parameter list"):
        optim.AdamW(parameters)


@both_engines
def test_a_frozen_parameter_stays_and_has_no_state(engine):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    optimizer = optim.AdamW(model.parameters(), lr=0.1, engine=engine)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert moved == [False, False, True, True]
    assert model[0].weight not in optimizer.state


def test_a_group_with_a_parameter_of_another_is_not_added_and_the_run_goes_on():
    w = nn.Parameter(torch.ones(3))
    optimizer = optim.AdamW([w], lr=0.1)
    w.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1)), w]})
    optimizer.step()
    assert len(optimizer.param_groups) == 1
    assert float(optimizer.state[w]["step"]) == 2.0


def beside_ones(w, engine, kind=optim.AdamW):
    """A step on a parameter beside a sound one, which must not move either; the words of the refusal."""
    sound = torch.ones(3)
    optimizer = kind([("sound", sound), ("other", w)], lr=0.1, engine=engine)
    sound.grad = torch.ones(3)
    w.grad = torch.ones(w.shape, dtype=w.dtype)
    with pytest.raises(RuleError) as refusal:
        optimizer.step()
    assert torch.equal(sound, torch.ones(3))
    assert not optimizer.state
    return str(refusal.value)


@both_engines
@every_class
def test_weights_that_are_one_place_in_memory_are_refused(kind, engine):
    words = beside_ones(torch.ones(6).expand(4, 6), engine, kind)
    assert words.startswith("several weights of other are one place in memory (strides (0, 1))")
    assert words.endswith("No weight has moved.")


@pytest.mark.parametrize(
    "turned",
    [
        lambda: torch.full((4,), 1 + 2j).conj(),
        lambda: torch.complex(torch.ones(40_000), torch.ones(40_000)).conj().imag,
    ],
    ids=["conjugate", "negative"],
)
@both_engines
def test_a_view_that_turns_signs_is_refused_since_its_memory_holds_other_numbers(engine, turned):
    assert "other shows memory with its sign turned" in beside_ones(turned(), engine)


def quantised(ones):
    with warnings.catch_warnings(action="ignore"):  # deprecated
        return torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)


def batched(ones):
    """A gradient as `torch.vmap` has it, which got out."""
    found = []
    torch.vmap(lambda one: found.append(one) or one)(torch.stack([ones, ones]))
    return found[0]


NO_GRADIENTS = {
    **{str(d): (lambda ones, d=d: ones.to(d), f"the gradient of w is {d}; it can be one of float64, float32")
       for d in (torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn)},
    "complex": (lambda ones: ones.to(torch.complex64), r"w is of shape \(\d+,\), but its gradient of shape \(\d+,\) \(complex\)"),
    "quantised": (quantised, "the gradient of w is torch.qint8; it can be one of"),
    "of torch.func": (batched, "the gradient of w is a tensor of torch.func"),
    "sparse": (torch.Tensor.to_sparse, "The gradient of w is sparse, which adamw does not take"),
}  # fmt: skip


@pytest.mark.parametrize("before", [0, 1, 3], ids="after {} steps".format)
@pytest.mark.parametrize("kind", NO_GRADIENTS)
@pytest.mark.parametrize("shape", [(4,), (40_000,)], ids=str)
@both_engines
def test_what_is_no_gradient_is_refused_at_every_step(engine, shape, kind, before):
    w = torch.ones(shape)
    w.grad_dtype = None  # what torch lets through from then on
    optimizer = optim.AdamW([("w", w)], engine=engine)
    for _ in range(before):
        w.grad = torch.ones(shape)
        optimizer.step()
    make, words = NO_GRADIENTS[kind]
    kept = w.clone()
    w.grad = make(torch.ones(shape))
    for _ in range(2):
        with pytest.raises(RuleError, match=f"^{words}"):
            optimizer.step()
    assert torch.equal(w, kept)
    w.grad = torch.ones(shape)
    optimizer.step()
    assert (w < kept).all()


@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 3), (2, 0, 3)], ids=str)
@both_engines
@every_class
def test_a_parameter_without_elements_is_carried_along(kind, engine, shape):
    ends = []
    for others in ([], [torch.ones(shape)]):
        w = torch.ones(4, 3)
        average = {} if kind([w]).averages else {"ema": 0.9}
        optimizer = kind([*others, w], engine=engine, clip_norm=0.5, **average)
        for _ in range(3):
            optimizer.measure = True
            for p in (*others, w):
                p.grad = torch.linspace(-1, 1, p.numel()).reshape(p.shape)
            optimizer.step()
        assert optimizer.last.gradient_norms[0] == (0.0 if others else optimizer.last.gradient_norm)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.step()
        ends.append(w)
    assert torch.equal(*ends)


# What changed under the optimiser


class Run:
    """Three parameters, of which the last is spoilt: those before it must not move either."""

    def __init__(self, engine, kind=optim.AdamW, dtype=torch.float32, **options):
        generator = torch.Generator().manual_seed(2)
        shapes = [(3,), (40_000,), (4, 3)]
        self.params = [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
        named = [(f"layer{i}.weight", p) for i, p in enumerate(self.params)]
        self.optimizer = kind(named, lr=0.05, engine=engine, **options)
        self.last = self.params[-1]
        self.feel()
        for _ in range(2):
            self.optimizer.step()

    def feel(self):
        for p in self.params:
            p.grad = p.detach().sin() + 0.1

    def bits(self, but=()):
        held = [self.optimizer.state.get(p, {}) for p in self.params]
        tensors = [*self.params, *(v for entry in held for v in entry.values())]
        return [t.detach().clone() for t in tensors if not any(t is one for one in but)]


def lose(tensor, left=0):
    tensor.untyped_storage().resize_(left)


def another_shape(run):
    run.last.grad = None
    run.last.data = torch.ones(2, 2)
    run.last.grad = torch.ones(2, 2)


def flattened(run):
    run.last.grad = None
    run.last.data = run.last.data.reshape(12).clone()
    run.last.grad = torch.ones(12)


def left_behind(run):
    run.last.data = torch.ones(400, 3)


def smaller_gradient(run):
    run.last.grad.resize_(1, 3)


def complex_now(run):
    run.last.grad = None
    run.last.data = run.last.data.to(torch.complex64)
    run.last.grad = torch.ones_like(run.last)


def gradient_behind_the_end(run):
    """A gradient far into a storage that is as large as other gradients', so that it reaches beyond it."""
    run.last.grad = torch.ones(24)[12:].view(4, 3)
    lose(run.last.grad, 48)


def weights_shortened_where_they_are(run):
    """Made shorter several times, a storage may come to lie where it was."""
    for left in (0, 48, 24, 20, 16):
        lose(run.last, left)


def state_shortened(run):
    lose(run.optimizer.state[run.params[1]]["exp_avg"], 400)
    run.optimizer.state[run.params[1]]["exp_avg"].untyped_storage().fill_(0)


SPOILS = {
    "shape, with a new gradient": (
        another_shape,
        r"layer2\.weight has become shape \(2, 2\), but its state `exp_avg` is of",
    ),
    "shape, as many numbers": (
        flattened,
        r"layer2\.weight has become shape \(12,\), but its state `exp_avg` is of shape \(4, 3\)",
    ),
    "shape, with the old gradient": (
        left_behind,
        r"layer2\.weight is of shape \(400, 3\), but its gradient of shape \(4, 3\)",
    ),
    "the gradient's shape": (smaller_gradient, r"is of shape \(4, 3\), but its gradient of shape \(1, 3\)"),
    "complex numbers": (
        complex_now,
        r"layer2\.weight has become shape \(4, 3\) \(complex\), but its state `exp_avg` is of shape \(4, 3\)",
    ),
    "freed weights": (
        lambda run: lose(run.last),
        r"the memory of layer2\.weight has been freed: 0 bytes are left of 48",
    ),
    "freed gradient": (
        lambda run: lose(run.last.grad),
        r"the memory of the gradient of layer2\.weight has been freed: 0 bytes are left of 48",
    ),
    "gradient cut short": (
        lambda run: lose(run.last.grad, 44),
        r"the memory of the gradient of layer2\.weight has been freed: 44 bytes are left of 48",
    ),
    "gradient behind the end": (
        gradient_behind_the_end,
        r"the memory of the gradient of layer2\.weight has been freed: 48 bytes are left of 96",
    ),
    "weights cut short": (
        weights_shortened_where_they_are,
        r"the memory of layer2\.weight has been freed: 16 bytes are left of 48",
    ),
}


@pytest.mark.parametrize("spoil", SPOILS)
@both_engines
def test_what_changed_under_the_optimiser_is_refused_by_name_and_nothing_moves(engine, spoil):
    run = Run(engine, ema=0.9)
    run.feel()
    change, words = SPOILS[spoil]
    change(run)
    before = run.bits(but=[run.last])
    for _ in range(2):  # the second time too
        with pytest.raises(RuleError, match=words):
            run.optimizer.step()
        after = run.bits(but=[run.last])
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("spoil", SPOILS)
@both_engines
def test_once_it_is_mended_the_descent_goes_on_bit_for_bit(engine, spoil):
    ends = []
    for spoils in (False, True):
        run = Run(engine, ema=0.9, clip_norm=1.0)
        if spoils:
            kept = run.last.detach().clone()
            run.feel()
            SPOILS[spoil][0](run)
            with pytest.raises(RuleError):
                run.optimizer.step()
            run.last.grad = None
            run.last.data = kept
        for _ in range(3):
            run.feel()
            run.optimizer.step()
        ends.append(run.bits())
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def state_of(run, key):
    return run.optimizer.state[run.last][key]


def put(run, key, value):
    run.optimizer.state[run.last][key] = value


STATES = {
    "a shape": (lambda run: put(run, "exp_avg", torch.ones(3, 4)), r"but its state `exp_avg` is of shape \(3, 4\)"),
    "the meta device": (
        lambda run: put(run, "exp_avg_sq", torch.ones(4, 3, device="meta")),
        r"the state `exp_avg_sq` of layer2\.weight is on the meta device",
    ),
    "no numbers between": (
        lambda run: put(run, "exp_avg", torch.eye(4, 3).to_sparse()),
        r"the state `exp_avg` of layer2\.weight is torch\.sparse_coo: make it dense",
    ),
    "freed memory": (
        lambda run: (put(run, "exp_avg", torch.ones(4, 3)), lose(state_of(run, "exp_avg"))),
        r"the memory of the state `exp_avg` of layer2\.weight has been freed: 0 bytes are left of 48",
    ),
    "cut memory": (
        lambda run: (put(run, "exp_avg", torch.ones(4, 3)), lose(state_of(run, "exp_avg"), 44)),
        r"of the state `exp_avg` of layer2\.weight has been freed: 44 bytes are left of 48",
    ),
    **{
        f"the count {value}": (
            lambda run, value=value: put(run, "step", value),
            f"has become {re.escape(repr(value))}, which must",
        )
        for value in (torch.tensor(math.nan), -1, math.inf, torch.tensor([1.0, 2.0]), "often", {"a": 1})
    },
}


@pytest.mark.parametrize("place", STATES)
@both_engines
def test_state_that_cannot_be_is_refused_by_its_name_and_nothing_moves(engine, place):
    run = Run(engine, ema=0.9)
    run.feel()
    spoil, words = STATES[place]
    kept = {key: v.clone() for key, v in run.optimizer.state[run.last].items()}
    spoil(run)
    before = [t.detach().clone() for t in run.params]
    with pytest.raises(RuleError, match=words):
        run.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, run.params, strict=True))
    run.optimizer.state[run.last].update(kept)
    run.optimizer.step()
    assert not torch.equal(before[-1], run.last)


@pytest.mark.parametrize("kind", [optim.Adafactor, optim.Muon], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3), (4, 1), (0, 3)], ids=str)
@both_engines
def test_a_matrix_that_became_another_is_refused_by_name(engine, shape, kind):
    run = Run(engine, kind)
    run.feel()
    run.last.grad = None
    run.last.data = torch.ones(shape)
    run.last.grad = torch.ones(shape)
    before = run.bits(but=[run.last])
    with pytest.raises(
        RuleError, match=r"layer2\.weight has become shape .*, but its state `(row_var|col_var|momentum_buffer)` is of"
    ):
        run.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, run.bits(but=[run.last]), strict=True))


@both_engines
def test_a_matrix_that_became_a_vector_is_refused_where_its_state_was_a_matrixs(engine):
    run = Run(engine, optim.Adafactor)
    run.feel()
    flattened(run)
    with pytest.raises(RuleError, match=r"layer2\.weight has become shape \(12,\), but its state `row_var` is of"):
        run.optimizer.step()


@both_engines
def test_state_whose_memory_was_cut_short_is_refused_by_name(engine):
    run = Run(engine)
    run.feel()
    state_shortened(run)
    with pytest.raises(
        RuleError, match=r"the state `exp_avg` of layer1\.weight has been freed: 400 bytes are left of 160000"
    ):
        run.optimizer.step()


@pytest.mark.parametrize("left", [0, 4, 44])
def test_weights_whose_memory_was_cut_short_are_found_before_the_kernel_writes_beyond_it(left):
    run = Run("cpu")
    lose(run.last, left)
    with pytest.raises(RuleError, match=f"has been freed: {left} bytes are left of 48"):
        run.optimizer.step()


@both_engines
def test_weights_that_come_back_to_other_memory_are_followed(engine):
    """What sharded training does between steps: take the memory away, and bring it back with the same numbers."""
    run, other = Run(engine), Run(engine)
    for _ in range(3):
        kept = run.last.detach().clone()
        lose(run.last)
        lose(run.last, 48)
        run.last.data.copy_(kept)
        for one in (run, other):
            one.feel()
            one.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(run.bits(), other.bits(), strict=True))


@both_engines
def test_a_dtype_that_nothing_is_calculated_in_is_refused(engine):
    w = torch.ones(4)  # torch lets no parameter that asks for a gradient become this
    optimizer = optim.AdamW([w], engine=engine)
    w.grad = torch.ones(4)
    optimizer.step()
    w.grad = None
    w.data = w.data.to(torch.float8_e4m3fn)
    w.grad = torch.ones(4).to(torch.float8_e4m3fn)
    with pytest.raises(RuleError, match=r"parameter 0 of group 0 has become torch\.float8_e4m3fn"):
        optimizer.step()


@pytest.mark.parametrize("order", [["cpu", "meta"], ["meta", "cpu"]])
@both_engines
def test_a_parameter_without_numbers_beside_real_ones_is_refused_by_name(engine, order):
    named = [(device, nn.Parameter(torch.ones(3, device=device))) for device in order]
    optimizer = optim.AdamW(named, engine=engine)
    for _, p in named:
        p.grad = torch.ones_like(p)
    with pytest.raises(RuleError, match=r"^meta is on the meta device, where there are no numbers: call to_empty\(\)"):
        optimizer.step()
    assert torch.equal(dict(named)["cpu"].detach(), torch.ones(3))
    assert not optimizer.state


def test_a_gradient_on_another_device_is_told_with_both():
    """PyTorch lets nobody put one there, so it is asked of the check itself."""
    why = why_invalid(torch.ones(3), torch.ones(3, device="meta"), {}, ())
    assert why == "{name} is on cpu, but its gradient on meta. No weight has moved."


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (math.nan, "has become nan: look at the schedule"),
        (-math.inf, "has become -inf"),
        (torch.tensor(math.nan), "has become nan"),
        (torch.tensor([0.1, 0.2]), "a number or a tensor of one element"),
    ],
    ids=str,
)
@both_engines
def test_a_rate_that_became_impossible_moves_nothing(engine, rate, words):
    run = Run(engine)
    before = run.bits()
    run.optimizer.param_groups[0]["lr"] = rate
    with pytest.raises(RuleError, match=words):
        run.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, run.bits(), strict=True))


@every_class
def test_a_state_that_cannot_be_is_not_loaded_and_changes_nothing(kind):
    w = nn.Parameter(torch.ones(4, 3))
    optimizer = kind([w])
    w.grad = torch.ones(4, 3)
    optimizer.step()
    good = copy.deepcopy(optimizer.state_dict())
    held = {key: v.clone() for key, v in optimizer.state[w].items()}
    two = copy.deepcopy(good)
    two["param_groups"].append(copy.deepcopy(two["param_groups"][0]))
    longer = copy.deepcopy(good)
    longer["param_groups"][0]["params"] = [0, 1]
    negative = copy.deepcopy(good)
    negative["param_groups"][0]["lr"] = -1.0
    for bad, words in (
        (two, "different number of parameter groups"),
        (longer, "doesn't match the size"),
        (negative, "`lr`"),
    ):
        with pytest.raises(ValueError, match=words):
            optimizer.load_state_dict(bad)
    assert all(torch.equal(optimizer.state[w][key], v) for key, v in held.items())
    assert optimizer.state_dict()["param_groups"] == good["param_groups"]
    optimizer.step()


@both_engines
def test_a_loaded_state_of_another_shape_is_told_at_the_step_and_moves_nothing(engine):
    first, second = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(2, 2))
    saved = optim.AdamW([first], engine=engine)
    first.grad = torch.ones(4, 3)
    saved.step()
    optimizer = optim.AdamW([second], engine=engine)
    optimizer.load_state_dict(saved.state_dict())
    second.grad = torch.ones(2, 2)
    with pytest.raises(RuleError, match=r"has become shape \(2, 2\), but its state `exp_avg` is of shape \(4, 3\)"):
        optimizer.step()
    assert torch.equal(second.detach(), torch.ones(2, 2))


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
def test_two_parameters_in_one_memory_or_with_one_state_are_refused(engine):
    whole = torch.ones(6)
    for one, other in ((whole[:4], whole[3:]), (whole, whole)):
        weights = [torch.nn.Parameter(one), torch.nn.Parameter(other)]
        for w in weights:
            w.grad = torch.ones_like(w)
        with pytest.raises(RuleError, match="two parameters share memory"):
            optim.AdamW(weights, lr=0.1, engine=engine).step()
    assert torch.equal(whole, torch.ones(6))
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = optim.AdamW(weights, lr=0.1, engine=engine)
    for w in weights:
        w.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[weights[0]] = optimizer.state[weights[1]]
    with pytest.raises(RuleError, match="two parameters have one dict as their state"):
        optimizer.step()
