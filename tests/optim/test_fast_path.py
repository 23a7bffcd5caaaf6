"""The fast path: bit for bit the steps of the general path, whatever happens between two steps."""

import copy
import math
import traceback
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg import optim
from thalweg.errors import RuleError
from thalweg.optim import fast_path
from thalweg.optim.engines import metadata_guards
from thalweg.optim.engines.validate import has_memory
from thalweg.rules import RULES

FAST = [name for name, rule in RULES.items() if not rule.is_matrix and rule.sums is None]


def made(rule="adamw", **options):
    generator = torch.Generator().manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in ((6, 4), (4, 4), (4,), ())]
    options = {"lr": 0.01, "clip_norm": 3.0, **({} if RULES[rule].average else {"ema": 0.9}), **options}
    groups = [{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.0}]
    return weights, optim.Optimizer(groups, rule, **options)


def set_gradients(weights):
    for w in weights:
        w.grad = torch.sin(3 * w.detach()) + w.detach()


def takes_fast_path(optimizer):
    """Step, and tell whether by the fast path."""
    before = optimizer._general_steps
    optimizer.step()
    return optimizer._general_steps == 0 and (before > 0 or optimizer._fast_path is not None)


def everything(weights, optimizer):
    states = [optimizer.state.get(w, {}) for w in weights]
    tensors = [t for w, held in zip(weights, states, strict=True) for t in (w, *(held[key] for key in sorted(held)))]
    tensors = [torch.tensor(404.0) if t is None or (isinstance(t, torch.Tensor) and t.is_meta) else t for t in tensors]
    tensors = [t if isinstance(t, torch.Tensor) else torch.tensor(t) for t in tensors]
    return [t.detach().clone() if has_memory(t) else torch.full_like(t.detach(), 404) for t in tensors]


@pytest.mark.parametrize("rule", FAST)
def test_after_one_general_step_all_are_fast_and_give_the_same_bits(rule, monkeypatch):
    def run(*, fast):
        if not fast:
            monkeypatch.setattr(fast_path.FastPath, "after_step", staticmethod(lambda *_: None))
        weights, optimizer = made(rule)
        were_fast, records = [], []
        for _ in range(6):
            set_gradients(weights)
            were_fast.append(takes_fast_path(optimizer))
            records.append(optimizer.last)
        return were_fast, everything(weights, optimizer), records

    one, other = run(fast=True), run(fast=False)
    assert one[0] == [False] + [True] * 5
    assert other[0] == [False] * 6
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))
    assert one[2] == other[2]


def _new_rate(weights, optimizer):
    for group in optimizer.param_groups:
        group["lr"] *= 0.7


def _rates_apart(weights, optimizer):
    optimizer.param_groups[0]["lr"] *= 0.5


def _rate_tensor(weights, optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.02)


def _new_decay(weights, optimizer):
    optimizer.param_groups[0]["weight_decay"] += 0.05


def _new_constants(weights, optimizer):
    optimizer.param_groups[1]["betas"] = (0.8, 0.99)


def _climb(weights, optimizer):
    optimizer.param_groups[1]["maximize"] = not optimizer.param_groups[1]["maximize"]


def _no_clip(weights, optimizer):
    optimizer.clip_norm = None


def _clip_value(weights, optimizer):
    optimizer.clip_value = 0.3


def _measure(weights, optimizer):
    optimizer.measure = True


def _cautious(weights, optimizer):
    optimizer.cautious = not optimizer.cautious


def _new_memory(weights, optimizer):
    weights[0].data = weights[0].data.clone()


def _turned(weights, optimizer):
    weights[1].data = weights[1].data.t()


def _turned_gradient(weights, optimizer):
    weights[1].grad = weights[1].grad.t().contiguous().t()


def _spread_gradient(weights, optimizer):
    weights[2].grad = weights[2].grad.sum().expand(4)


def _no_gradient(weights, optimizer):
    weights[2].grad = None


def _nan(weights, optimizer):
    weights[3].grad = torch.tensor(float("nan"))


def _tiny(weights, optimizer):
    for w in weights:
        w.grad *= 1e-30


def _held(optimizer, weight, key):
    """The state's tensor; where there is none by now, one that nobody holds."""
    return optimizer.state.get(weight, {}).get(key, torch.zeros_like(weight.detach()))


def _state_replaced(weights, optimizer):
    optimizer.state[weights[0]]["exp_avg"] = torch.ones(6, 4)


def _state_written(weights, optimizer):
    _held(optimizer, weights[0], "exp_avg").fill_(0.5)


def _state_moved(weights, optimizer):
    held = _held(optimizer, weights[1], "exp_avg_sq")
    held.data = held.data.clone()


def _state_gone(weights, optimizer):
    optimizer.state.pop(weights[2], None)


def _state_cleared(weights, optimizer):
    optimizer.state.clear()


def _count_set(weights, optimizer):
    for w in weights:
        _held(optimizer, w, "step").fill_(7.0)


def _one_count_set(weights, optimizer):
    _held(optimizer, weights[0], "step").fill_(3.0)


def _counts_moved(weights, optimizer):
    for w in weights:
        _held(optimizer, w, "step").data = torch.tensor(7.0)


def _state_is_anothers(weights, optimizer):
    for key in ("exp_avg", "exp_avg_sq"):
        others = _held(optimizer, weights[0], key).data
        _held(optimizer, weights[1], key).data = others.view(-1)[:16].view(4, 4)


def _state_is_anothers_object(weights, optimizer):
    weights.append(torch.nn.Parameter(torch.ones(4)))
    weights[-1].grad = torch.ones(4)
    optimizer.param_groups[1]["params"].append(weights[-1])
    optimizer.state[weights[-1]] = {**optimizer.state[weights[2]]}


def _state_is_weights(weights, optimizer):
    _held(optimizer, weights[0], "exp_avg").data = weights[0].data


def _weights_are_others(weights, optimizer):
    weights[1].data = weights[0].data.view(-1)[:16].view(4, 4)


def _loaded(weights, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def _group_added(weights, optimizer):
    weights.append(torch.nn.Parameter(torch.ones(3)))
    weights[-1].grad = torch.ones(3)
    optimizer.add_param_group({"params": [weights[-1]]})


def _frozen(weights, optimizer):
    weights[0].requires_grad_(not weights[0].requires_grad)


def _other_rule(weights, optimizer):
    optimizer.param_groups[0]["rule"] = "lion"
    optimizer.param_groups[0] |= {"betas": (0.9, 0.99)}


class Marked(torch.Tensor):
    """A subclass that is no other than a tensor."""


def _gradient_of_subclass(weights, optimizer):
    weights[0].grad = weights[0].grad.as_subclass(Marked)


def _gradient_with_sign_turned(weights, optimizer):
    weights[0].grad = torch._neg_view(weights[0].grad)


def _gradient_in_a_larger_tensor(weights, optimizer):
    weights[1].grad = torch.linspace(-1, 1, 99)[7:23].view(4, 4)


def _gradient_is_the_weights(weights, optimizer):
    weights[0].grad = weights[0].data


def _gradient_is_other_weights(weights, optimizer):
    weights[0].grad = torch.as_strided(weights[1].data, (6, 4), (2, 1))


def _gradient_is_moved_weights(weights, optimizer):
    weights[2].grad = weights[0].data.view(-1)[3:7]


def _gradient_is_whole_other_weights(weights, optimizer):
    weights.append(torch.nn.Parameter(torch.ones(4)))
    optimizer.param_groups[1]["params"].append(weights[-1])
    weights[-1].grad = weights[2].data


def _gradient_is_state(weights, optimizer):
    weights[0].grad = optimizer.state.get(weights[0], {}).get("exp_avg_sq")


def _gradient_is_anothers(weights, optimizer):
    weights[1].grad = weights[0].grad[:4]


def _gradient_asks_for_gradients(weights, optimizer):
    weights[0].grad = weights[0].grad.clone().requires_grad_()


def _double_gradient(weights, optimizer):
    weights[0].grad_dtype = None
    weights[0].grad = weights[0].grad.double()


def _whole_gradient(weights, optimizer):
    weights[0].grad_dtype = None
    weights[0].grad = torch.ones(6, 4, dtype=torch.int32)


def _complex_gradient(weights, optimizer):
    weights[3].grad_dtype = None
    weights[3].grad = torch.tensor(1j)


def _gradient_cut_short(weights, optimizer):
    weights[1].grad.untyped_storage().resize_(40)


def _weights_cut_short(weights, optimizer):
    storage = weights[0].untyped_storage()
    kept = [(w, w.detach().clone()) for w in weights if w.untyped_storage().data_ptr() == storage.data_ptr()]
    for left in () if storage.is_shared() else (0, 96, 48, 40):
        storage.resize_(left)
    try:
        optimizer.step()
    finally:
        for weight, values in kept:
            weight.data = values


def _state_in_a_larger_tensor(weights, optimizer):
    optimizer.state.get(weights[0], {})["exp_avg"] = torch.linspace(-1, 1, 40)[7:31].view(6, 4)


def _state_of_another_dtype(weights, optimizer):
    optimizer.state.get(weights[0], {})["exp_avg"] = torch.ones(6, 4, dtype=torch.float64)


def _state_on_meta(weights, optimizer):
    optimizer.state.get(weights[1], {})["exp_avg_sq"] = torch.ones(4, 4, device="meta")


def _state_is_a_number(weights, optimizer):
    optimizer.state.get(weights[0], {})["exp_avg"] = 0.5


def _state_of_two_exchanged(weights, optimizer):
    state = optimizer.state
    state[weights[0]], state[weights[1]] = state[weights[1]], state[weights[0]]


def _keys_of_state_exchanged(weights, optimizer):
    entry = optimizer.state.get(weights[0], {})
    entry |= {"exp_avg": entry.get("exp_avg_sq"), "exp_avg_sq": entry.get("exp_avg")}


def _state_is_a_plain_dict(weights, optimizer):
    optimizer.state = {weight: dict(entry) for weight, entry in optimizer.state.items()}


def _state_of_another_rule(weights, optimizer):
    saved = optimizer.state_dict()
    saved["state"] = {number: {"momentum_buffer": torch.ones_like(w)} for number, w in enumerate(weights)}
    optimizer.load_state_dict(saved)


def _groups_reversed(weights, optimizer):
    optimizer.param_groups.reverse()


def _parameters_reversed(weights, optimizer):
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][::-1]


def _parameter_in_another_group(weights, optimizer):
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not weights[1]]
    optimizer.param_groups[1]["params"].insert(0, weights[1])


def _parameter_left_out(weights, optimizer):
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not weights[0]]


def _parameter_replaced(weights, optimizer):
    old, weights[0] = weights[0], torch.nn.Parameter(weights[0].detach().clone())
    weights[0].grad = torch.ones(6, 4)
    for group in optimizer.param_groups:
        group["params"] = [weights[0] if p is old else p for p in group["params"]]
    if old in optimizer.state:
        optimizer.state[weights[0]] = optimizer.state.pop(old)


def _parameters_of_no_weights(weights, optimizer):
    weights += [torch.nn.Parameter(torch.ones(0)), torch.nn.Parameter(torch.ones(3, 0))]
    optimizer.param_groups[1]["params"] += weights[-2:]
    for weight in weights[-2:]:
        weight.grad = torch.ones_like(weight)


def _double_weights(weights, optimizer):
    weights[0].data = weights[0].data.double()


def _weights_in_shared_memory(weights, optimizer):
    weights[0].share_memory_()


def _weights_made_in_inference_mode(weights, optimizer):
    with torch.inference_mode():
        weights[0].data = weights[0].data.clone()


def _longer_memory(weights, optimizer):
    storage = weights[0].untyped_storage()
    if not storage.is_shared():  # which PyTorch cannot make longer: it crashes
        storage.resize_(4096)


def _a_copy_steps(weights, optimizer):
    copy.copy(optimizer).step()


def _average_begins_anew(weights, optimizer):
    for entry in optimizer.state.values():
        entry.pop("ema", None)


def _other_decay_of_the_average(weights, optimizer):
    optimizer.ema = 0.5


def _clip_norm_below_zero(weights, optimizer):
    optimizer.clip_norm = -1.0


def _clip_norm_is_a_text(weights, optimizer):
    optimizer.clip_norm = "3.0"


def _average_beyond_one(weights, optimizer):
    optimizer.ema = 1.5


def _decay_is_none(weights, optimizer):
    optimizer.param_groups[0]["weight_decay"] = None


def _constants_out_of_range(weights, optimizer):
    optimizer.param_groups[0]["betas"] = (-1.0, 0.9)


def _constants_gone(weights, optimizer):
    optimizer.param_groups[0].pop("betas", None)


EVENTS = [
    *(_state_in_a_larger_tensor, _state_of_another_dtype, _state_on_meta, _state_is_a_number, _state_of_two_exchanged),
    *(_keys_of_state_exchanged, _state_is_a_plain_dict, _state_of_another_rule, _groups_reversed, _parameters_reversed),
    *(_parameter_in_another_group, _parameter_left_out, _parameter_replaced, _parameters_of_no_weights),
    *(_double_weights, _weights_in_shared_memory, _weights_made_in_inference_mode, _longer_memory, _a_copy_steps),
    *(
        _other_decay_of_the_average,
        _average_begins_anew,
        _clip_norm_below_zero,
        _clip_norm_is_a_text,
        _average_beyond_one,
        _decay_is_none,
    ),
    *(_constants_out_of_range, _constants_gone),
    *(_gradient_of_subclass, _gradient_with_sign_turned, _gradient_in_a_larger_tensor, _gradient_is_the_weights),
    *(_gradient_is_other_weights, _gradient_is_moved_weights, _gradient_is_whole_other_weights, _gradient_is_state),
    *(_gradient_is_anothers, _gradient_asks_for_gradients, _double_gradient, _whole_gradient, _complex_gradient),
    *(_gradient_cut_short, _weights_cut_short),
    *(_new_rate, _rates_apart, _rate_tensor, _new_decay, _new_constants, _climb, _no_clip, _clip_value, _measure),
    *(_cautious, _new_memory, _turned, _turned_gradient, _spread_gradient, _no_gradient, _nan, _tiny),
    *(
        _state_replaced,
        _state_written,
        _state_moved,
        _state_gone,
        _state_cleared,
        _count_set,
        _one_count_set,
        _counts_moved,
        _state_is_anothers,
        _state_is_anothers_object,
        _state_is_weights,
        _weights_are_others,
        _loaded,
        _frozen,
    ),
    *(_group_added, _other_rule),
]


def stepped_through(events, *, fast, leaving_out=False, **options):
    """Step after each event; `leaving_out`: go on where one cannot happen after what an earlier one left."""
    weights, optimizer = made(on_nonfinite="skip", **options)
    original = fast_path.FastPath.after_step
    if not fast:
        fast_path.FastPath.after_step = staticmethod(lambda *_: None)
    try:
        records = []
        for event in events:
            set_gradients(weights)
            try:
                if event is not None:
                    event(weights, optimizer)
                optimizer.step()
            except RuleError as refused:
                records.append(str(refused))
                continue
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                if not leaving_out or "/thalweg/optim/" in traceback.extract_tb(error.__traceback__)[-1].filename:
                    raise
                continue
            records.append((optimizer.last.gradient_norm, optimizer.last.skipped, optimizer.skips))
        return everything(weights, optimizer), records
    finally:
        fast_path.FastPath.after_step = staticmethod(original)


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_between_two_fast_steps_has_the_effect_it_has_on_the_general_path(event):
    events = [None, None, event, None, None]
    _same(stepped_through(events, fast=True), stepped_through(events, fast=False))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([None, None, None, *EVENTS]), min_size=3, max_size=9))
def test_any_sequence_of_events_does(events):
    events = [None, *events]
    one, other = (stepped_through(events, fast=fast, leaving_out=True) for fast in (True, False))
    _same(one, other)


@pytest.mark.parametrize(
    "event", [_gradient_is_moved_weights, _gradient_is_state, _gradient_is_other_weights, _gradient_is_the_weights]
)
def test_a_gradient_that_lies_in_weights_or_state_at_every_step_is_seen_at_every_step(event):
    events = [None, event, event, event, None]
    _same(stepped_through(events, fast=True), stepped_through(events, fast=False))


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
@pytest.mark.parametrize("event", [_state_of_two_exchanged, _state_on_meta, _clip_norm_below_zero, _constants_gone])
def test_what_was_refused_is_refused_until_it_is_mended(event, engine):
    weights, optimizer = made(engine=engine)
    for _ in range(2):
        set_gradients(weights)
        optimizer.step()
    event(weights, optimizer)
    before = everything(weights, optimizer)
    for _ in range(3):
        with pytest.raises(RuleError):
            optimizer.step()
        _same((before, ()), (everything(weights, optimizer), ()))


TURNS = [lambda t: t.t(), lambda t: torch._neg_view(t), lambda t: t.view(torch.int32), lambda t: t.view(-1)[:1]]


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
@pytest.mark.parametrize("size", [4, 200])
@pytest.mark.parametrize("turn", TURNS)
def test_state_turned_at_its_place_is_what_a_step_on_the_general_path_takes(turn, size, engine, monkeypatch):
    monkeypatch.setattr(fast_path.FastPath, "after_step", staticmethod(lambda *_: None))

    def stepped(put):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, size * size).view(size, size))
        optimizer = optim.AdamW([weight], lr=0.01, engine=engine)
        for number in range(4):
            weight.grad = torch.sin(3 * weight.detach()) + torch.linspace(0, 1, size)
            if number == 2:
                put(optimizer.state[weight])
            try:
                optimizer.step()
            except RuleError as refused:
                return str(refused)
        return everything([weight], optimizer)

    def at_its_place(entry):
        entry["exp_avg"].data = turn(entry["exp_avg"].data)

    def by_another(entry):
        entry["exp_avg"] = turn(entry["exp_avg"]).clone()

    one, other = stepped(at_its_place), stepped(by_another)
    assert one == other if isinstance(one, str) else all(map(torch.equal, one, other))


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
def test_state_that_is_cut_short_while_steps_are_refused_is_refused_too(engine):
    weights, optimizer = made(engine=engine)
    for _ in range(2):
        set_gradients(weights)
        optimizer.step()
    memory, own = weights[0].data, weights[1].data
    optimizer.state[weights[0]]["exp_avg"].data = memory
    weights[1].data = memory.view(-1)[:16].view(4, 4)
    with pytest.raises(RuleError, match="share memory"):
        optimizer.step()
    weights[0].data, weights[1].data = memory.clone(), own
    memory.untyped_storage().resize_(40)
    with pytest.raises(RuleError, match="has been freed: 40 bytes are left"):
        optimizer.step()


@pytest.mark.parametrize("event", EVENTS)
def test_the_tensor_engine_gives_the_same_or_refuses_the_same(event):
    events = [None, None, event, None, None]
    one, other = stepped_through(events, fast=True), stepped_through(events, fast=True, engine="tensors")
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-6, equal_nan=True)
    assert [one for one in one[1] if isinstance(one, str)] == [one for one in other[1] if isinstance(one, str)]


def _same(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=0, equal_nan=True)
    assert str(one[1]) == str(other[1])  # NaN is NaN


@pytest.mark.parametrize("event", [_new_memory, _state_replaced, _loaded, _turned_gradient])
def test_the_fast_path_is_found_again(event):
    weights, optimizer = made()
    were_fast = []
    for number in range(8):
        set_gradients(weights)
        if number == 3:
            event(weights, optimizer)
        were_fast.append(takes_fast_path(optimizer))
    assert were_fast[1:3] == [True, True]
    assert were_fast[3] is False
    assert were_fast[-3:] == [True] * 3


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("engine", ["cpu", "tensors"])
@pytest.mark.parametrize("rule", ["adamw", "adam", "nadam"])
def test_a_weight_decay_that_changes_at_every_step_gives_the_bits_of_the_general_path(
    rule, engine, cautious, monkeypatch
):
    def run(*, fast):
        if not fast:
            monkeypatch.setattr(fast_path.FastPath, "after_step", staticmethod(lambda *_: None))
        weights, optimizer = made(rule, engine=engine, cautious=cautious)
        were_fast, before = [], everything(weights, optimizer)
        for step in range(6):
            optimizer.param_groups[0]["weight_decay"] = 0.5 / (step + 1)
            optimizer.param_groups[1]["weight_decay"] = (
                0.5 / (step + 1) if step == 3 else 0.0
            )  # the groups' decays merge
            set_gradients(weights)
            were_fast.append(takes_fast_path(optimizer))
        assert not any(map(torch.equal, before, everything(weights, optimizer)))
        return were_fast, everything(weights, optimizer)

    one, other = run(fast=True), run(fast=False)
    assert one[0] == [False] + [engine == "cpu" and not cautious] * 5
    assert all(map(torch.equal, one[1], other[1]))


def test_each_step_shrinks_weights_by_its_own_decay_on_either_path_and_engine():
    for engine in ("cpu", "tensors"):
        weights, optimizer = made("adamw", engine=engine, lr=0.1, clip_norm=None)
        before, decays = [w.detach().clone() for w in weights], [0.5, 0.25, 0.0, 1.0, 0.125]
        for decay in decays:
            optimizer.param_groups[0]["weight_decay"] = decay
            for w in weights:
                w.grad = torch.zeros_like(w)
            optimizer.step()
        shrunk = math.prod(1 - 0.1 * decay for decay in decays)
        for i, (w, start) in enumerate(zip(weights, before, strict=True)):
            torch.testing.assert_close(w.detach(), start * (shrunk if i < 2 else 1.0))


@pytest.mark.parametrize("decay", [float("nan"), float("inf"), "0.1", 10**400, torch.tensor([0.1, 0.2])])
def test_a_weight_decay_that_becomes_no_number_is_refused_and_moves_no_weight(decay):
    weights, optimizer = made()
    for _ in range(3):
        set_gradients(weights)
        optimizer.step()
    before = [w.detach().clone() for w in weights]
    optimizer.param_groups[0]["weight_decay"] = decay
    with pytest.raises(RuleError, match="weight_decay"):
        optimizer.step()
    assert all(map(torch.equal, before, weights))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_bits_are_the_same_in_any_mode_of_torchs(mode):
    plain, within = made(), made()
    for weights, optimizer in (plain, within):
        for _ in range(4):
            set_gradients(weights)
            if weights is plain[0]:
                optimizer.step()
            else:
                with mode():
                    optimizer.step()
    _same((everything(*plain), ()), (everything(*within), ()))


def test_no_gradient_is_kept_alive():
    weights, optimizer = made()
    for _ in range(3):
        set_gradients(weights)
        optimizer.step()
    gone = [weakref.ref(w.grad) for w in weights]
    optimizer.zero_grad()
    assert not any(ref() is not None for ref in gone)


def test_weights_that_autograd_saved_are_known_to_have_changed():
    weights, optimizer = made()
    for _ in range(3):
        set_gradients(weights)
        loss = (weights[0] ** 2).sum()
        optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_rate_that_has_become_nan_is_refused_on_either_path():
    weights, optimizer = made()
    for _ in range(2):
        set_gradients(weights)
        optimizer.step()
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = float("nan")
    before = everything(weights, optimizer)
    with pytest.raises(RuleError, match="learning rate"):
        optimizer.step()
    _same((before, ()), (everything(weights, optimizer), ()))


ALIKE = torch.arange(16.0).reshape(4, 4)
COMPLEX = torch.ones(2, dtype=torch.complex64)
UNLIKE = [
    *((ALIKE, other) for other in (ALIKE.t(), ALIKE.double(), ALIKE[:2], torch.nn.Parameter(ALIKE), ALIKE.to_sparse())),
    *((ALIKE, other) for other in (ALIKE.to("meta"), ALIKE.reshape(2, 8), ALIKE[:, :2])),
    (COMPLEX, COMPLEX.conj()),
    (COMPLEX.imag, COMPLEX.conj().imag),
]


@pytest.mark.parametrize("guard", [metadata_guards._torch_guard, metadata_guards._python_guard])
def test_a_guard_finds_any_other_metadata(guard):
    assert guard([ALIKE, COMPLEX])([ALIKE.clone(), COMPLEX.clone()])
    assert not guard([ALIKE])([ALIKE, ALIKE.clone()])
    for known, other in UNLIKE:
        assert not guard([known])([other]), other


def test_without_pytorchs_guards_metadata_are_compared_in_python(monkeypatch):
    monkeypatch.setattr(metadata_guards, "_torch_guard", lambda _: None)
    weights, optimizer = made()
    for _ in range(3):
        set_gradients(weights)
        optimizer.step()
    assert optimizer._general_steps == 0
