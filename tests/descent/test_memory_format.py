"""Convolutions with channels last: values and names as without, bits that come again, and a model given back as it was made."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from images import convolutions, images, plan, same_weights, stopped_and_resumed, task
from torch import Tensor, nn

import thalweg as tw
from thalweg.descent.loop import descend
from thalweg.descent.memory_format import MemoryFormat, convolution_weights, in_memory_format
from thalweg.descent.problem import open_task
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent

LAST = torch.channels_last


def test_the_weights_of_a_run_lie_so_and_those_that_are_given_back_do_not() -> None:
    descent = Descent(open_task(task()), plan(memory_format="channels_last"))
    weight = descent.model.get_parameter("4.weight")
    assert weight.is_contiguous(memory_format=LAST)
    assert not weight.is_contiguous()
    before = weight.clone()
    assert descent.hand_over_model() is descent.model
    assert descent.model.get_parameter("4.weight") is weight
    assert weight.is_contiguous()
    assert weight.equal(before)


def test_what_is_given_back_and_saved_is_contiguous_under_the_same_names(tmp_path: Path) -> None:
    run = tw.train(task(), plan(memory_format="channels_last"), out=tmp_path / "run")
    assert all(p.is_contiguous() for p in run.model.parameters())
    assert list(run.model.state_dict()) == list(convolutions().state_dict())
    opened = tw.Run.open(tmp_path / "run", task())
    assert same_weights(opened.model, run.model)
    assert torch.equal(opened.predict(images()[0]), run.predict(images()[0]))


def test_a_step_is_the_contiguous_one_up_to_rounding() -> None:
    one, other = (
        tw.train(task(), plan(rule="gradient_descent", memory_format=f, steps=5))
        for f in ("contiguous", "channels_last")
    )
    assert np.allclose(one.history["loss"][1:], other.history["loss"][1:], rtol=1e-4)
    ones, others = one.model.state_dict(), other.model.state_dict()
    assert all(torch.allclose(ones[name], others[name], rtol=1e-3, atol=1e-5) for name in ones)


@pytest.mark.parametrize("rule", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize("engine", ["cpu", "tensors"])
def test_the_bits_come_again_and_a_resumed_run_has_them(rule: str, engine: str, tmp_path: Path) -> None:
    how = plan(memory_format="channels_last", rule=rule, engine=engine, ema=0.8 if rule == "adamw" else None)
    made = task(model=lambda: convolutions(nn.Dropout(0.3)))
    whole = tw.train(made, how)
    resumed = stopped_and_resumed(made, how, tmp_path / "run", at=13)
    assert same_weights(whole.model, resumed.model)
    assert np.array_equal(whole.history["loss"], resumed.history["loss"], equal_nan=True)


def test_a_rollback_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    how = plan(memory_format="channels_last", rule="momentum", learning_rate=30.0)
    whole = tw.train(task(), how)
    assert any(event.kind == "rollback" for event in whole.events)
    assert same_weights(whole.model, stopped_and_resumed(task(), how, tmp_path / "run", at=3).model)


def test_only_convolutions_are_laid_out_anew() -> None:
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(1, 2, 3, 4))
            self.sound = nn.Conv1d(3, 4, 3)
            self.volume = nn.Conv3d(3, 4, 3)
            self.up = nn.ConvTranspose2d(3, 4, 3)

    model = Bias()
    assert convolution_weights(model) == [model.up.weight]


@pytest.mark.parametrize("shape", [(8, 1, 3, 3), (8, 4, 1, 1), (1, 1, 3, 3)])
def test_weights_of_one_channel_or_one_pixel_are_laid_out_too(shape: tuple[int, ...]) -> None:
    model = nn.Conv2d(shape[1], shape[0], shape[2:])
    before = model.weight.detach().clone()
    changed = MemoryFormat(model, "channels_last")
    assert model(torch.zeros(2, shape[1], 6, 6)).is_contiguous(memory_format=LAST)
    assert model.weight.equal(before)
    changed.undo()
    assert model.weight.stride() == before.stride()


def test_a_model_of_one_channel_trains_to_the_same_bits_again(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 2))

    x, y = images()
    made, how = task(model=make, data=(x[:, :1], y), validation=None), plan(memory_format="channels_last")
    whole = tw.train(made, how)
    assert same_weights(whole.model, stopped_and_resumed(made, how, tmp_path / "run", at=9).model)
    assert whole.metrics["loss"] < 0.5


def test_weights_that_lie_so_already_or_share_memory_are_left() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chosen = nn.Conv2d(3, 4, 3)
            self.chosen.weight.data = self.chosen.weight.data.contiguous(memory_format=LAST)
            self.one, self.same, self.alike = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
            self.same.weight = self.one.weight
            self.tied = nn.Conv2d(3, 4, 3)
            self.tied.weight = nn.Parameter(self.alike.weight.detach())  # another parameter of the same memory

    model = Shared()
    assert convolution_weights(model) == [model.one.weight]
    MemoryFormat(model, "channels_last").undo()
    assert model.chosen.weight.is_contiguous(memory_format=LAST)


def test_tied_and_frozen_convolutions_stay_tied_and_frozen() -> None:
    def make() -> nn.Module:
        model = nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), *convolutions().children()
        )
        model[2].weight = model[0].weight
        model[3].weight.requires_grad_(False)
        return model

    run = tw.train(task(model=make), plan(memory_format="channels_last"))
    assert run.model.get_parameter("2.weight") is run.model.get_parameter("0.weight")
    frozen = run.model.get_parameter("3.weight")
    assert not frozen.requires_grad
    assert frozen.is_contiguous()


def test_the_users_own_module_is_not_changed() -> None:
    mine = convolutions()
    before = [p.detach().clone() for p in mine.parameters()]
    tw.train(task(model=mine), plan(memory_format="channels_last"))
    assert all(p.is_contiguous() and p.equal(b) for p, b in zip(mine.parameters(), before, strict=True))


def test_a_step_of_ones_own_and_validation_compute_so_too() -> None:
    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    descent = Descent(open_task(task(loss=None, step=step)), plan(memory_format="channels_last"))

    def check(module: nn.Module, arguments: Any, output: Tensor) -> None:
        assert output.is_contiguous(memory_format=LAST)

    descent.model.get_submodule("0").register_forward_hook(check)
    descend(descent, Recorder())
    assert descent.last_validation["loss"] < 0.6


def test_predicting_computes_so_and_leaves_the_model_as_it_is() -> None:
    run = tw.train(task(), plan(memory_format="channels_last"))
    seen = list[bool]()
    run.model.get_submodule("0").register_forward_hook(
        lambda module, args, output: seen.append(output.is_contiguous(memory_format=LAST))
    )
    addresses = [p.data_ptr() for p in run.model.parameters()]
    run.predict(images()[0])
    tw.evaluate(run, images())
    assert seen
    assert all(seen)
    assert addresses == [p.data_ptr() for p in run.model.parameters()]


def test_an_error_within_leaves_the_weights_as_they_were() -> None:
    model = convolutions()
    with pytest.raises(KeyError), in_memory_format(model, "channels_last"):
        raise KeyError
    assert all(p.is_contiguous() for p in model.parameters())


POOLING = [nn.MaxPool2d(2), nn.MaxPool2d(3, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3)]


@pytest.mark.parametrize("pooling", POOLING, ids=repr)
def test_pooling_is_given_its_gradient_with_channels_last_and_the_same_values(pooling: nn.Module) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), pooling), images(6)[0]
    changed, orders, gradients = MemoryFormat(model, "channels_last"), list[bool](), list[Tensor]()
    for called in (model, lambda x: pooling._call_impl(model[0](x))):
        output = called(x)
        output.register_hook(lambda gradient: orders.append(gradient.is_contiguous(memory_format=LAST)))
        (output.flatten(1) * torch.linspace(-1, 1, output[0].numel())).sum().backward()
        gradients.append(model[0].weight.grad.clone())
        model.zero_grad()
    assert orders == [True, False]
    assert torch.equal(*gradients)
    changed.undo()
    assert "_compiled_call_impl" not in vars(pooling)


def test_pooling_that_the_user_has_compiled_is_called_so() -> None:
    pooling = nn.MaxPool2d(2)
    pooling._compiled_call_impl = compiled = lambda x: pooling._call_impl(x)
    MemoryFormat(nn.Sequential(nn.Conv2d(3, 4, 3), pooling), "channels_last").undo()
    assert pooling._compiled_call_impl is compiled


def test_gradients_of_single_examples_and_of_gradients_pass_through_pooling() -> None:
    model, (x, y) = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)), images(5)
    MemoryFormat(model, "channels_last")
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (x[None],)), y[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    F.cross_entropy(model(x), y).backward()
    assert all(torch.allclose(each[name].mean(0), p.grad, atol=1e-6) for name, p in model.named_parameters())
    model.zero_grad()
    whole = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()), create_graph=True)
    torch.stack([gradient.square().sum() for gradient in whole]).sum().backward()
    assert model[0].weight.grad is not None


def test_a_copy_of_a_model_calls_its_own_pooling() -> None:
    model = convolutions()
    MemoryFormat(model, "channels_last")
    assert not any("_compiled_call_impl" in vars(module) for module in copy.deepcopy(model).modules())


def test_a_model_without_images_trains_as_without() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, 9, generator=generator)
    made = task(
        model=lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(28, 2)),
        data=(x, (x.mean((1, 2)) > 0).long()),
        validation=None,
    )
    one, other = (tw.train(made, plan(memory_format=f)) for f in ("contiguous", "channels_last"))
    assert same_weights(one.model, other.model)


def test_a_diverged_run_gives_a_model_in_its_own_format_too() -> None:
    with pytest.raises(tw.ThalwegError) as raised:
        tw.train(task(), plan(memory_format="channels_last", rule="gradient_descent", learning_rate=1e30, watch=True))
    run = raised.value.run
    assert isinstance(run, tw.Run)
    assert all(p.is_contiguous() for p in run.model.parameters())
