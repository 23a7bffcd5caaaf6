"""What objects carry is read where it changed, and put back: in place where the place kept its object, by a new one else."""

import itertools
import math
import random
import types
from collections import ChainMap, Counter, UserDict, deque
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.objects.state import ObjectState
from thalweg.objects.values import encode

STEPS = [0]


class Slotted:
    __slots__ = ("count", "unset")

    def __init__(self):
        self.count = 0


class Holder:
    total = 0

    def __init__(self):
        self.slotted, self.parts, self.log = Slotted(), [Slotted(), Slotted()], []
        self.memory = torch.zeros(2)

    @property
    def explosive(self):
        raise AssertionError("no property is to be called")

    def __call__(self, x, keep=[]):  # noqa: B006 # what a person may have written
        Holder.total += 1
        self.slotted.count += 1
        self.parts[1].count += 2
        self.log.append(x)
        keep.append(x)
        self.memory = self.memory + x
        return helper(x)


def helper(x):
    STEPS[0] += 1
    return cached(x)


@lru_cache
def cached(x):
    return x + len(STEPS)


def snapshot(holder):
    return (
        *(Holder.total, holder.slotted.count, holder.parts[1].count, list(holder.log), holder.memory.tolist()),
        *(STEPS[0], list(Holder.__call__.__defaults__[0])),
    )


def test_everything_that_a_call_changed_is_read_and_put_back():
    holder = Holder()
    state = ObjectState({"loss": partial(holder, keep=holder.log)}, set())
    before, log = snapshot(holder), holder.log
    assert state.read() == {}
    holder(1)
    held, after = state.read(), snapshot(holder)
    holder(2)
    assert state.write(held) == []
    assert snapshot(holder) == after
    assert state.write({}) == []
    assert snapshot(holder) == before
    assert holder.log is log


def test_a_tensor_that_was_replaced_is_not_written_into():
    holder, data = Holder(), torch.arange(2.0)
    state = ObjectState({"loss": holder})
    holder.memory = data[:]  # of somebody else
    held = state.read()
    holder.memory = torch.ones(2)
    state.write(held)
    assert holder.memory.tolist() == [0, 1]
    holder.memory.add_(5)
    assert data.tolist() == [0, 1]


def test_an_attribute_that_came_to_be_goes_again_and_comes_again():
    holder = Holder()
    state = ObjectState({"loss": holder})
    holder.late = [1, math.inf]
    held = state.read()
    state.write({})
    assert not hasattr(holder, "late")
    state.write(held)
    assert holder.late == [1, math.inf]


def test_modules_of_libraries_are_watched_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    state = ObjectState({"model": model}, known)
    assert state.read() == {}
    model[1].p = 0.1
    model[0].weight.requires_grad_(False)
    model[2].eval()
    assert set(state.read()) == {"model.1.p", "model.0.weight.requires_grad", "model.2.training"}
    state.write({})
    assert (model[1].p, model[0].weight.requires_grad, model[2].training) == (0.5, True, True)


def test_a_hook_counts_too():
    model, counts = nn.Linear(2, 2), {"calls": 0}

    def hook(module, inputs, output):
        counts["calls"] += 1

    model.register_forward_hook(hook)
    state = ObjectState({"model": model}, {id(p) for p in model.parameters()})
    model(torch.ones(1, 2))
    held = state.read()
    model(torch.ones(1, 2))
    state.write(held)
    assert counts["calls"] == 1


def test_what_cannot_be_kept_is_named():
    class Endless:
        def __init__(self):
            self.numbers, self.rows, self.plain = itertools.count(), (x for x in ()), [1]

    state = ObjectState({"step": Endless()})
    assert set(state.problems) == {"step.numbers", "step.rows"}


def test_a_place_that_is_gone_is_named():
    box = {"n": 0}
    state = ObjectState({"step": lambda: box})
    box["n"] = 1
    held = state.read()
    assert ObjectState({"step": lambda: None}).write(held) == ["step:box"]


def test_a_seed_or_a_rate_that_the_user_has_changed_in_the_code_is_not_overwritten():
    def made(rate):
        count = 0

        def step():
            nonlocal count
            count += 1
            return rate * count

        return step

    step = made(0.1)
    state = ObjectState({"step": step})
    step()
    other = made(0.5)
    ObjectState({"step": other}).write(state.read())
    assert other() == 1.0


def test_a_registered_buffer_that_is_left_alone_stays_so_when_the_module_gives_it_another_tensor():
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("hidden", torch.zeros(2))
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            self.hidden = self.hidden + x
            return self.hidden

    model = Remembering()
    state = ObjectState({"model": model}, {id(tensor) for tensor in model.buffers()})
    with state.unchanged():
        model(torch.ones(2))
    assert model.calls == 0
    assert model.hidden.tolist() == [1.0, 1.0]
    model(torch.ones(2))
    assert set(state.read()) == {"model.calls"}


def test_what_is_too_large_is_named_once_it_changes():
    model, log = nn.Linear(2, 2), [0.0] * 200_001
    state = ObjectState({"model": model, "step": lambda: log}, set())
    assert state.read() == {}
    assert state.problems == {}
    model.seen = torch.zeros(1 << 23)
    log.append(1.0)
    assert state.read() == {}
    assert set(state.problems) == {"model.seen", "step:log"}


def test_what_lies_in_namespaces_lists_of_modules_and_optimisers_is_kept():
    layers, space = (
        [{"layer": nn.Linear(2, 2), "rng": random.Random(1)}],
        types.SimpleNamespace(steps=0, inner=UserDict(n=1)),
    )
    optimizer = torch.optim.Adam(layers[0]["layer"].parameters())
    counts, chained = Counter("ab"), ChainMap({"a": 1})
    state = ObjectState({"step": lambda: (layers, space, optimizer, counts, chained)})
    assert state.read() == {}
    assert state.problems == {}

    def change():
        space.steps += 1
        space.inner["n"] += 1
        counts["a"] += 1
        chained["b"] = 2
        layers[0]["layer"](torch.ones(1, 2)).sum().backward()
        optimizer.step()
        return (
            space.steps,
            space.inner["n"],
            counts["a"],
            layers[0]["rng"].random(),
            layers[0]["layer"].weight.tolist(),
        )

    change()
    held = state.read()
    second = change()
    assert state.write(held) == []
    layers[0]["layer"].zero_grad()
    layers[0]["layer"](torch.ones(1, 2)).sum().backward()
    assert change() == second


@pytest.mark.parametrize("known", [True, False])
def test_a_parameter_in_a_list_stays_that_parameter(known):
    """As in PyTorch's recurrent modules, which compute with a list of their own parameters."""
    cells = nn.GRU(2, 3)
    cells.groups = {"decay": [cells.weight_ih_l0], "rest": (cells.bias_ih_l0,)}
    state = ObjectState({"model": cells}, {id(p) for p in cells.parameters()} if known else set())
    with torch.no_grad():
        cells.weight_ih_l0.add_(1.0)
    held = state.read()
    with state.unchanged(), torch.no_grad():
        cells.weight_hh_l0.add_(1.0)
    for saved in (held, {}):
        state.write(saved)
        assert cells._flat_weights[0] is cells.groups["decay"][0] is cells.weight_ih_l0
        assert cells.groups["rest"][0] is cells.bias_ih_l0
        assert all(a is b for a, b in zip(cells._flat_weights, cells.parameters(), strict=True))


def test_an_older_checkpoints_copies_do_not_take_the_place_of_parameters():
    cells = nn.GRU(2, 3)
    held = {"model._flat_weights": {"value": encode([p.detach() for p in cells.parameters()]), "same": True}}
    assert ObjectState({"model": cells}, {id(p) for p in cells.parameters()}).write(held) == ["model._flat_weights"]
    assert cells._flat_weights[0] is cells.weight_ih_l0


@pytest.mark.parametrize("kind", [list, tuple, lambda parts: dict(enumerate(parts)), lambda parts: deque(parts, 3)])
def test_a_tensor_in_a_container_stays_the_one_that_others_hold(kind):
    def make():
        memory, counts = torch.zeros(2), np.zeros(2)
        return types.SimpleNamespace(held=kind([memory, counts, 1]), memory=memory, counts=counts)

    def change(box):
        box.memory.add_(1)
        box.counts += 2
        if not isinstance(box.held, tuple):
            box.held[2] += 1

    def aliased(box):
        return box.held[0] is box.memory and box.held[1] is box.counts

    box = make()
    state = ObjectState({"step": lambda: box})
    change(box)
    held = state.read()
    with state.unchanged():
        change(box)
    assert aliased(box)
    assert box.memory.tolist() == [1, 1]
    change(box)
    state.write(held)
    assert aliased(box)
    assert (box.memory.tolist(), box.counts.tolist()) == ([1, 1], [2, 2])
    other = make()
    assert ObjectState({"step": (lambda box: lambda: box)(other)}).write(held) == []
    assert aliased(other)
    assert (other.memory.tolist(), other.counts.tolist()) == ([1, 1], [2, 2])
    state.write({})
    assert aliased(box)
    assert box.memory.tolist() == [0, 0]


def test_a_list_that_was_given_anothers_tensor_does_not_write_into_it():
    box, data = types.SimpleNamespace(held=[torch.zeros(2)]), torch.arange(2.0)
    state = ObjectState({"step": lambda: box})
    box.held[0] = data[:]
    held = state.read()
    box.held[0] = torch.ones(2)
    state.write(held)
    box.held[0].add_(5)
    assert data.tolist() == [0, 1]


def test_what_nothing_changed_is_not_made_anew():
    box = types.SimpleNamespace(nested=[[torch.zeros(2)]])
    state = ObjectState({"step": lambda: box})
    box.nested[0][0].add_(1)
    tensor = box.nested[0][0]
    with state.unchanged():
        pass
    assert box.nested[0][0] is tensor
