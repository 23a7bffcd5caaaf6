"""What objects carry is read where it changed, and put back: in place where the place kept its object, by a new one else."""

import enum
import itertools
import math
import random
import sys
import types
from collections import ChainMap, Counter, UserDict, deque
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.objects import places, values
from thalweg.objects.state import ObjectState
from thalweg.objects.values import encode
from thalweg.records import task_files

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


class Maker:
    def __init__(self):
        self.made, self.parts, self.table, self.first = None, [], {}, Slotted()

    def make(self):
        self.made, self.late = nn.BatchNorm1d(2), Holder()
        self.late.table = {"count": 3, "holder": Slotted()}
        self.parts.append(Holder())
        self.table["maker"] = Holder()


def test_objects_that_were_made_since_go_again_unless_the_state_has_them():
    maker = Maker()
    parts, table, first = maker.parts, maker.table, maker.first
    state = ObjectState({"step": maker})
    maker.make()
    held, made = state.read(), (maker.made, maker.late, *maker.parts, *maker.table.values())
    assert state.write(held) == []
    assert (maker.made, maker.late, *maker.parts, *maker.table.values()) == made
    assert maker.late.table["count"] == 3
    assert {name for name, _ in maker.made.named_buffers()} == {"running_mean", "running_var", "num_batches_tracked"}
    assert state.write({}) == []
    assert (maker.made, hasattr(maker, "late"), maker.parts, maker.table) == (None, False, [], {})
    assert maker.parts is parts
    assert maker.table is table
    assert maker.first is first


def test_objects_that_were_there_before_stay_where_something_is_unchanged():
    maker = Maker()
    state = ObjectState({"step": maker})
    maker.made = object()  # without any state
    made = maker.made
    with state.unchanged():
        maker.late = object()
    assert maker.made is made
    assert not hasattr(maker, "late")


def test_what_a_new_object_has_is_its_own_wherever_it_lies():
    holder = Holder()
    holder.parts = [Slotted()]
    state = ObjectState({"step": holder})
    holder.parts.append({"count": 3, "slotted": Slotted()})
    state.write({})
    assert holder.parts[1]["count"] == 3


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


def module_of(name, text, **values):
    module = types.ModuleType(name)
    sys.modules[name] = module
    vars(module).update(values)
    exec(text, vars(module))
    return module


@pytest.fixture
def modules():
    text = "class Net:\n    total = 0\ndef step():\n    global COUNT\n    COUNT += 1\n    Net.total += 1\n"
    task_file = f"{task_files.__name__}._2fhome_2fmine_2epy"
    names = {"task file": (task_file, "/home/mine.py"), "one": ("one.utils", ""), "other": ("other.utils", "")}
    found = {key: module_of(name, text, COUNT=0, __file__=file) for key, (name, file) in names.items()}
    yield found
    for name, _ in names.values():
        del sys.modules[name]


def test_what_the_code_of_a_task_file_changes_is_kept(modules):
    module = modules["task file"]
    state = ObjectState({"model": module.Net, "step": module.step})
    module.step()
    held = state.read()
    assert held.keys() == {"mine:COUNT", "Net.total"}
    assert state.write({}) == []
    assert (module.COUNT, module.Net.total) == (0, 0)
    assert state.write(held) == []
    assert (module.COUNT, module.Net.total) == (1, 1)


def test_modules_and_classes_of_one_name_keep_what_is_theirs(modules):
    one, other = modules["one"], modules["other"]
    state = ObjectState({"step": one.step, "loss": other.step})
    one.step()
    other.step()
    other.step()
    held = state.read()
    state.write({})
    assert (one.COUNT, one.Net.total, other.COUNT, other.Net.total) == (0, 0, 0, 0)
    assert state.write(held) == []
    assert (one.COUNT, one.Net.total, other.COUNT, other.Net.total) == (1, 1, 2, 2)


HOSTILE = [
    *(
        "model.forward",
        "model.weight",
        "model._modules",
        "model._compiled_call_impl",
        "model.__class__",
        "model.__dict__",
    ),
    *("step.__code__", "step.__globals__", "step.__wrapped__", "test_state:print", "test_state:ObjectState"),
    *(
        "test_state:__builtins__",
        "test_state:os",
        "test_state:never_used",
        "os:system",
        "model.weight.data",
        "",
        ".",
        ":",
    ),
    *("step:holder", "Holder.__init__", "model.a b", "model.weight.requires_grad.x"),
]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_state_from_elsewhere_makes_nothing_that_the_users_code_could_not_have_made(path):
    model, holder = nn.Linear(2, 2), Holder()

    def step():
        print(holder(1))

    step()
    before = [dict(vars(model)), dict(vars(holder)), dict(vars(step)), dict(globals()), step.__code__, type(holder)]
    state = ObjectState({"model": model, "step": step}, {id(model.weight), id(model.bias)})
    for entry in ({"value": "rm", "same": False}, {"value": {"kind": "mapping", "items": []}, "same": True}):
        assert state.write({path: entry}) == [path]
    after = [dict(vars(model)), dict(vars(holder)), dict(vars(step)), dict(globals()), step.__code__, type(holder)]
    assert all(one is other or one == other for one, other in zip(before, after, strict=True))


ENTRIES = [
    *(
        None,
        3,
        [],
        {},
        {"value": 1},
        {"value": {"kind": "object"}, "same": False},
        {"value": {"kind": 3}, "same": True},
    ),
    {"value": {"kind": "array", "dtype": "O", "shape": [1], "data": torch.zeros(8, dtype=torch.uint8)}, "same": False},
    {"value": {"kind": "array", "dtype": "<f8", "shape": [1 << 60], "data": torch.zeros(8)}, "same": False},
    {"value": {"kind": "random", "state": 1}, "same": True},
    {"value": {"kind": "marshal", "data": "x"}, "same": True},
]


@pytest.mark.parametrize("path", ["model.rng", "model.calls", "model.new"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_that_is_none_is_named_and_changes_nothing(path, entry):
    model = nn.Linear(2, 2)
    model.rng, model.calls = random.Random(0), [1]
    before = (model.rng.getstate(), [1])
    state = ObjectState({"model": model})
    assert state.write({path: entry}) == [path]
    assert (model.rng.getstate(), model.calls) == before
    assert not hasattr(model, "new")


@pytest.mark.parametrize("state", [None, 3, "model", [1], {1: {}}])
def test_a_state_that_is_no_table_is_refused(state):
    with pytest.raises(TypeError, match="no table"):
        ObjectState({"model": nn.Linear(2, 2)}).write(state)


BIG = {
    "numbers": lambda: [0.0] * 1_000_000,
    "tensors": lambda: dict.fromkeys(range(100_000), torch.zeros(2)),
    "lists": lambda: [[0.0] * 50_000 for _ in range(20)],
    "texts": lambda: ["a" * 1_000_000] * 50,
    "shared": lambda: [[[[0] * 100] * 100] * 100] * 100,
}


@pytest.mark.parametrize("kind", BIG)
def test_what_is_large_is_not_gone_through_each_time(kind, monkeypatch):
    value, marks = BIG[kind](), []
    state = ObjectState({"step": lambda: value})
    monkeypatch.setattr(values, "mark", lambda part, identity=True, mark=values.mark: (marks.append(1), mark(part))[1])
    assert state.read() == {}
    assert len(marks) <= 200
    if isinstance(value, list):
        value.append(value[0])
        assert state.read() == {}
        assert "more than 200,000 items" in state.problems["step:value"]


def test_items_of_containers_are_counted_over_all_of_them(monkeypatch):
    holders = [types.SimpleNamespace(log=[0.0] * 100) for _ in range(10)]
    monkeypatch.setattr(places, "MOST_ITEMS_IN_ALL", 500)
    state = ObjectState({"step": lambda: holders})
    for holder in holders:
        holder.log.append(1.0)
    assert len(state.read()) == 10


def test_a_replay_buffer_is_kept():
    buffer = deque([(torch.zeros(4), 0, 1.0, torch.zeros(4)) for _ in range(500)], maxlen=500)
    state = ObjectState({"step": lambda: buffer})
    assert state.problems == {}
    buffer.append((torch.ones(4), 1, 2.0, torch.ones(4)))
    held = state.read()
    state.write({})
    assert buffer[-1][1] == 0
    state.write(held)
    assert buffer[-1][1] == 1
    assert buffer.maxlen == 500


def test_what_two_attributes_hold_together_is_one_object_again():
    """As an average or a best that begins as, and now and then becomes, what the present one is."""

    def make():
        first = torch.zeros(2)
        return types.SimpleNamespace(best=torch.zeros(2), cur=torch.ones(2), one=first, other=first, log=[])

    def call(box, n):
        box.cur = box.cur + n
        if n == 2:
            box.best = box.cur  # now the same
        if n == 3:
            box.one = torch.ones(2)  # no longer
            box.late, box.new = box.log, torch.ones(1)
            box.newer = box.new
        box.log.append(n)

    box = make()
    state = ObjectState({"step": lambda: box})
    call(box, 1), call(box, 2)
    second = state.read()
    call(box, 3)
    third = state.read()
    for saved, best in ((second, [4, 4]), (third, [4, 4]), ({}, [0, 0]), (second, [4, 4])):
        resumed = make()
        for holder, objects in ((box, state), (resumed, ObjectState({"step": (lambda box: lambda: box)(resumed)}))):
            assert objects.write(saved) == []
            assert holder.best.tolist() == best
            assert (holder.best is holder.cur) == (saved is second)
            assert (holder.one is holder.other) == (saved is not third)
            assert holder.log == {id(second): [1, 2], id(third): [1, 2, 3]}.get(id(saved), [])
            assert hasattr(holder, "late") == (saved is third)
            assert saved is not third or (holder.late is holder.log and holder.newer is holder.new)
    with state.unchanged():
        call(box, 2)
    assert box.best is box.cur
    assert box.best.tolist() == [4, 4]


def test_a_chain_of_any_length_and_what_holds_itself_end_no_training_and_are_named():
    def made():
        box = types.SimpleNamespace(count=0, deep=[], ring=[0])
        link = box
        for _ in range(5_000):
            link.next, box.deep = types.SimpleNamespace(), [box.deep]
            link = link.next
        box.ring.append(box.ring)
        return box

    box = made()
    state = ObjectState({"step": lambda: box})
    box.count += 1
    with state.unchanged():
        box.ring[0] += 1
        box.count += 1
    assert box.count == 1
    box.ring.append(1)
    assert state.read().keys() == {"step:box.count"}
    assert state.write({}) == ["step:box.ring"]
    assert state.problems.pop("step:box.deep") == "a list of very many levels"
    assert "holds itself" in state.problems.pop("step:box.ring")
    assert [*state.problems.values()] == ["nested in very many levels"]


class Phase(enum.Enum):
    WARM = 1
    MAIN = 2


def test_members_of_enumerations_are_kept_and_put_back_as_themselves():
    def made():
        return types.SimpleNamespace(phase=Phase.WARM, seen=[Phase.WARM], counts={Phase.WARM: 0})

    box, other = made(), made()
    state = ObjectState({"step": lambda: box})
    assert state.read() == {}
    box.phase, box.seen[0] = Phase.MAIN, Phase.MAIN
    box.counts[Phase.WARM] += 1
    held = state.read()
    for holder, objects in ((box, state), (other, ObjectState({"step": (lambda box: lambda: box)(other)}))):
        assert objects.write({}) == []
        assert (holder.phase, holder.seen, holder.counts) == (Phase.WARM, [Phase.WARM], {Phase.WARM: 0})
        assert objects.write(held) == []
        assert (holder.phase, holder.seen, holder.counts) == (Phase.MAIN, [Phase.MAIN], {Phase.WARM: 1})
    assert (Phase.WARM.value, Phase.WARM.name, Phase(2)) == (1, "WARM", Phase.MAIN)
    unknown = {"step:box.phase": {"value": {"kind": "enum", "name": "__class__"}, "same": False}}
    assert state.write(unknown) == ["step:box.phase"]


def test_state_by_tensor_or_by_module_is_found_again_whatever_they_have_become():
    class Odd:
        def __repr__(self):
            raise AssertionError("nothing of the user's is to be called")

    layer = nn.Linear(1, 1)
    box = {layer.weight: types.SimpleNamespace(count=0), Odd(): types.SimpleNamespace(count=0), ("a", 1): Slotted()}
    state = ObjectState({"step": lambda: box})
    for value in box.values():
        value.count = 1
    with torch.no_grad():
        layer.weight.add_(1)
    held = state.read()
    for value in box.values():
        value.count = 2
    assert state.write(held) == []
    assert [value.count for value in box.values()] == [1, 1, 1]


@pytest.mark.parametrize("make", [list, deque, dict, set])
def test_a_container_of_objects_is_the_same_one_with_the_same_objects_where_something_is_unchanged(make):
    class Held:
        def __init__(self, value):
            self.value = value

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            first = Held(1)
            self.held = {"first": first} if make is dict else make([first])

    module = Holder()
    state = ObjectState({"model": module})
    held = module.held
    (first,) = held.values() if make is dict else held
    with state.unchanged():
        first.value = 2
        if isinstance(held, list | deque):
            held.append(Held(3))
        elif isinstance(held, set):
            held.add(Held(3))
        else:
            held["second"] = Held(3)
        module.held = make()
    assert module.held is held
    assert [*(held.values() if make is dict else held)] == [first]
    assert first.value == 1
