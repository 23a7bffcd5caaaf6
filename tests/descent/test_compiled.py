"""A compiled forward pass: names as without, bits that follow from the call alone, and a run that goes on without a compiler."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from images import plan as image_plan
from images import same_weights, stopped_and_resumed
from images import task as image_task
from small import blobs, classes, network, plan
from torch import Tensor, nn

import thalweg as tw
from thalweg.descent import compiled
from thalweg.descent.compiled import CompiledForward, compiled_graphs
from thalweg.descent.problem import open_task
from thalweg.descent.state import Descent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
WITH = {"compile": True, "digest_every": 1, "threads": 1}


@pytest.fixture(autouse=True)
def nothing_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_functions", WeakKeyDictionary())


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are traced as for the compiler, but computed by PyTorch's own operations, which takes no minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def dropping() -> nn.Module:
    return network(nn.Dropout(0.2))


class Uncompilable(nn.Module):
    """A model that no graph can be made of: it asks for a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (2 if x.sum().item() > 1e9 else 1)


@pytest.mark.usefixtures("traced")
def test_convolutions_and_pooling_with_channels_last_are_compiled_and_a_resumed_run_has_the_bits(
    tmp_path: Path,
) -> None:
    how = image_plan(**WITH, memory_format="channels_last")
    whole = tw.train(image_task(), how)
    assert not whole.events
    assert same_weights(whole.model, stopped_and_resumed(image_task(), how, tmp_path / "run", at=13).model)


@pytest.mark.usefixtures("traced")
def test_names_and_values_are_those_of_the_plain_model(tmp_path: Path) -> None:
    plain = tw.train(classes(), plan(threads=1))
    run = tw.train(classes(), plan(**WITH), out=tmp_path / "run")
    assert not run.events
    assert list(run.model.state_dict()) == list(network().state_dict())
    assert type(run.model) is nn.Sequential
    assert same_weights(run.model, plain.model)  # traced, the operations are the same
    assert same_weights(tw.Run.open(tmp_path / "run", classes()).model, run.model)
    assert run.model._compiled_call_impl is None
    assert not hasattr(run.model, "_orig_mod")


@pytest.mark.usefixtures("traced")
def test_models_of_one_make_are_compiled_once() -> None:
    made, before = classes(), compiled_graphs()
    for _ in range(3):
        tw.train(made, plan(**WITH))
    assert compiled_graphs() == before + 1


@pytest.mark.usefixtures("traced")
def test_whole_batches_in_training_are_compiled_and_nothing_else() -> None:
    problem = open_task(classes())
    descent = Descent(problem, plan(**WITH))
    forward = descent.compiled
    assert forward is not None
    descent.model(torch.zeros(15, 4))
    with torch.no_grad():
        descent.model(torch.zeros(16, 4))
    descent.model.eval()(torch.zeros(16, 4))
    assert not forward.has_compiled
    descent.model.train()(torch.zeros(16, 4))
    assert forward.has_compiled


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("at", [1, 6, 17])
def test_a_resumed_run_has_the_bits_of_the_whole_one(at: int, tmp_path: Path) -> None:
    made = classes(model=dropping, data=blobs(90))  # the last batch of an epoch is smaller
    how = plan(**WITH, batch_size=20)
    whole = tw.train(made, how)
    resumed = stopped_and_resumed(made, how, tmp_path / "run", at)
    assert same_weights(whole.model, resumed.model)
    assert np.array_equal(whole.history["loss"], resumed.history["loss"], equal_nan=True)


def failing(*args: Any, **options: Any) -> Any:
    def fail(*args: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    return fail


def test_without_a_compiler_the_run_goes_on_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", failing)
    plain, run = tw.train(classes(), plan(threads=1)), tw.train(classes(), plan(**WITH))
    assert same_weights(plain.model, run.model)
    (event,) = run.events
    assert event.kind == "note"
    assert event.message.startswith("The model is not compiled from here on: RuntimeError: InvalidCxxCompiler")


@pytest.mark.usefixtures("traced")
def test_a_model_of_which_no_graph_can_be_made_trains_all_the_same() -> None:
    run = tw.train(classes(model=Uncompilable), plan(**WITH))
    plain = tw.train(classes(model=Uncompilable), plan(threads=1))
    assert same_weights(run.model, plain.model)
    assert [event.message.partition(":")[0] for event in run.events] == ["The model is not compiled from here on"]


@pytest.mark.usefixtures("traced")
def test_an_error_of_the_model_is_told_as_its_own() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 16 and self.training:
                raise ValueError("not sixteen")
            return self.inner(x)

    made = classes(model=Fails)
    with pytest.raises(tw.TaskError, match="not sixteen"):
        tw.train(made, plan(**WITH))


def test_memory_that_runs_out_is_not_taken_for_a_fault_of_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(function: Any, **options: Any) -> Any:
        def call(model: nn.Module, arguments: Any, keywords: Any) -> Any:
            if len(arguments[0]) > 8:
                raise RuntimeError("out of memory")
            return function(model, arguments, keywords)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    run = tw.train(classes(), plan(**WITH))
    assert [event.kind for event in run.events] == ["out_of_memory"]


@pytest.mark.usefixtures("traced")
def test_copies_of_a_model_in_training_are_plain_models() -> None:
    descent = Descent(open_task(classes()), plan(**WITH))
    copied = copy.deepcopy(descent.model)
    assert copied._compiled_call_impl is None
    assert descent.model._compiled_call_impl is not None


@pytest.mark.usefixtures("traced")
def test_a_step_of_ones_own_and_models_with_keywords_are_compiled() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, *, x: Tensor) -> Tensor:
            return self.inner(x)

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(x=batch[0]), batch[1])

    before = compiled_graphs()
    run = tw.train(classes(model=Named, loss=None, step=step, metrics={}), plan(**WITH))
    assert not run.events
    assert compiled_graphs() == before + 1


@pytest.mark.usefixtures("traced")
def test_a_make_that_takes_no_weak_reference_is_compiled_too() -> None:
    class Make:
        __slots__ = ()

        def __call__(self) -> nn.Module:
            return network()

    model = network().train()
    forward = CompiledForward(model, Make(), 4)
    model(torch.zeros(4, 4))
    assert forward.has_compiled
    forward.undo()
    assert model._compiled_call_impl is None


@pytest.mark.heavy
def test_what_the_compiler_makes_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    made = classes(model=dropping, data=blobs(90))
    how = plan(**WITH, batch_size=20)
    whole = tw.train(made, how)
    assert not whole.events
    assert same_weights(whole.model, stopped_and_resumed(made, how, tmp_path / "run", 7).model)


@pytest.mark.heavy
def test_a_compiler_that_is_missing_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch._inductor.config as settings

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with settings.patch({"cpp.cxx": ("/no/such/compiler",), "fx_graph_cache": False}):
        run = tw.train(classes(), plan(**WITH))
    assert [event.message.partition(":")[0] for event in run.events] == ["The model is not compiled from here on"]
