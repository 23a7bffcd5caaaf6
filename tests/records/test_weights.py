import pytest
import torch
from torch import nn

from thalweg.errors import CheckpointError
from thalweg.records.weights import load_model_state, make_late_buffers, model_state


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.o.weight = self.e.weight
        self.register_buffer("hidden", torch.ones(2), persistent=False)


def copied(state):
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def test_all_parameters_and_buffers_are_taken_tied_and_passing_ones_too():
    assert set(model_state(Tied())) == {"e.weight", "o.weight", "o.bias", "hidden"}
    assert "1.running_mean" in model_state(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_come_back_bit_for_bit(dtype):
    one, other = nn.Linear(3, 4).to(dtype), nn.Linear(3, 4).to(dtype)
    load_model_state(other, copied(model_state(one)))
    assert torch.equal(one.weight, other.weight)
    assert other.weight.requires_grad


def test_tied_weights_stay_tied():
    one, other = Tied(), Tied()
    load_model_state(other, copied(model_state(one)))
    assert other.o.weight is other.e.weight
    assert torch.equal(other.o.weight, one.e.weight)


def test_a_lazy_model_takes_its_shapes_from_the_weights():
    def lazy():
        return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())

    one, other = lazy(), lazy()
    one(torch.randn(4, 5))
    load_model_state(other, copied(model_state(one)))
    x = torch.randn(6, 5)
    assert torch.equal(one.eval()(x), other.eval()(x))


def test_another_models_weights_are_refused_by_name():
    state = copied(model_state(nn.Linear(3, 4)))
    with pytest.raises(
        CheckpointError,
        match=r"of another model: 0\.bias is not in the checkpoint; 0\.weight is not in the checkpoint; bias is not in the model",
    ):
        load_model_state(nn.Sequential(nn.Linear(3, 4)), state)
    with pytest.raises(
        CheckpointError,
        match=r"weight is \(4, 3\) in the checkpoint and \(4, 5\) in the model.*Use the task the run was made with\.",
    ):
        load_model_state(nn.Linear(5, 4), state)


def test_a_buffer_that_is_none_until_the_first_call_is_loaded():
    def made():
        model = nn.Sequential(nn.Linear(2, 2))
        model[0].register_buffer("memory", None)
        return model

    called, other = made(), made()
    called[0].memory = torch.arange(3.0)
    load_model_state(other, model_state(called))
    assert torch.equal(other[0].memory, called[0].memory)
    assert other[0].memory is not called[0].memory
    with pytest.raises(CheckpointError, match="memory is not in the model"):
        load_model_state(nn.Sequential(nn.Linear(2, 2)), model_state(called))


def test_buffers_that_a_first_call_registers_are_made_and_nothing_is_hidden_by_them():
    called, model, other = (
        nn.Sequential(nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(3, 2)),
    )
    called[0].register_buffer("seen", torch.arange(3.0))
    state = model_state(called)
    make_late_buffers(model, state)
    load_model_state(model, state)
    assert torch.equal(model[0].seen, called[0].seen)
    make_late_buffers(other, {**state, "0.forward": torch.ones(1), "1.seen": torch.ones(1)})
    assert [name for name, _ in other.named_buffers()] == ["0.seen"]
    assert callable(other[0].forward)
    make_late_buffers(fresh := nn.Linear(2, 2), {"seen": torch.ones(1)})
    assert list(fresh.buffers()) == []
