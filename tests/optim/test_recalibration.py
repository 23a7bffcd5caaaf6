import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from thalweg.errors import DataError
from thalweg.optim.recalibration import recalibrated


class Net(nn.Module):
    """Batch norm after a spectrally normalised layer and dropout, and a buffer that counts calls by being replaced."""

    def __init__(self):
        super().__init__()
        self.first = spectral_norm(nn.Linear(4, 6))
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls = self.calls + 1
        return self.norm(self.drop(self.first(x)))


def net():
    torch.manual_seed(0)
    model = Net()
    for _ in range(5):
        model(torch.randn(8, 4))
    return model


def batches(count=6, size=16):
    generator = torch.Generator().manual_seed(1)
    return [1.0 + 2.0 * torch.randn(size, 4, generator=generator) for _ in range(count)]


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_statistics_are_the_plain_mean_over_the_batches():
    model = nn.BatchNorm1d(4)
    given = batches()
    with recalibrated(model, given) as count:
        assert count == 6
        mean = torch.stack([b.mean(0) for b in given]).mean(0)
        torch.testing.assert_close(model.running_mean, mean)
        torch.testing.assert_close(model.running_var, torch.stack([b.var(0) for b in given]).mean(0))
        assert model.momentum == 0.1


@pytest.mark.parametrize("training", [True, False])
def test_afterwards_every_bit_mode_and_random_state_is_as_it_was(training):
    model = net().train(training)
    model.unused.eval()
    modes, before = [m.training for m in model.modules()], bits(model)
    state = torch.get_rng_state()
    with recalibrated(model, batches()):
        assert torch.equal(torch.get_rng_state(), state)
        assert [m.training for m in model.modules()] == modes
        assert not torch.equal(model.norm.running_mean, before["norm.running_mean"])
    assert [m.training for m in model.modules()] == modes
    assert same(bits(model), before)


def test_within_only_statistics_of_batch_norm_differ():
    model = net()
    before, calls = bits(model), model.calls
    with recalibrated(model, batches()):
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert model.calls is calls
    assert changed == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_a_layer_that_no_batch_comes_through_keeps_its_statistics():
    model = net()
    model.unused.running_mean.fill_(7.0)
    with recalibrated(model, batches()):
        assert model.unused.running_mean.tolist() == [7.0] * 3


def test_a_frozen_layer_keeps_its_statistics():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    model[0].eval()
    model[0].running_mean.fill_(50.0)
    with recalibrated(model, batches()):
        assert model[0].running_mean.tolist() == [50.0] * 4
        assert model[1].running_mean.max() < -40.0  # what comes through the frozen layer


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_failing_pass_leaves_no_trace(fails_at):
    model = net()
    before = bits(model)
    given = batches()
    given[fails_at] = torch.zeros(3, 5)
    with pytest.raises(RuntimeError), recalibrated(model, given):
        pass
    assert same(bits(model), before)
    assert model.norm.momentum == 0.1


def test_a_body_that_fails_leaves_no_trace():
    model = net()
    before = bits(model)
    with pytest.raises(ZeroDivisionError), recalibrated(model, batches()):
        raise ZeroDivisionError
    assert same(bits(model), before)


def test_without_batch_norm_no_batch_is_asked_for():
    def never():
        raise AssertionError("a batch was drawn")
        yield

    with recalibrated(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), never()) as count:
        assert count == 0


def test_no_batch_at_all_is_an_error_and_leaves_no_trace():
    model = net()
    before = bits(model)
    with pytest.raises(DataError, match="gave none"), recalibrated(model, []):
        pass
    assert same(bits(model), before)


def test_batches_may_be_tuples_mappings_or_what_a_function_takes():
    found = []
    for given, forward in (
        (batches(), None),
        ([(b, torch.zeros(16)) for b in batches()], None),
        ([{"input": b} for b in batches()], None),
        ([[b.numpy()] for b in batches()], lambda model, batch: model(torch.from_numpy(batch[0]))),
    ):
        model = nn.BatchNorm1d(4)
        with recalibrated(model, given, forward):
            found.append(model.running_var.clone())
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_what_is_saved_within_is_what_was_judged():
    model = net()
    with recalibrated(model, batches()):
        kept = copy.deepcopy(model).eval()
        wanted = model.eval()(batches()[0])
        model.train()
    assert torch.equal(kept(batches()[0]), wanted)
