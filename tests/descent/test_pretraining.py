"""Before training: what is measured on copies, and what is left unmeasured."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import thalweg as tw
from thalweg.descent.pretraining import _different, _fittable_part, measure_before_training
from thalweg.descent.problem import open_task
from thalweg.landscape.initial_figures import RATES
from thalweg.sampling import Draw
from thalweg.watch.findings import findings_before_training

X = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def net(*last, outputs=2):
    return lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs), *last)


def problem(model=None, loss=F.cross_entropy, data=(X, Y), **more):
    return open_task(tw.Task(model=model or net(), loss=loss, data=data, **more), "cpu")


def scored(*last):
    return problem(net(*last, outputs=1), nn.MSELoss(), (X, X[:, :1]))


def test_where_time_runs_out_nothing_is_guessed():
    start = measure_before_training(problem(data=(X, Y.flip(0))), seconds=0.0)
    assert start.fit is None
    assert start.held_out is None
    assert measure_before_training(scored(nn.Sigmoid()), seconds=0.0).bounds == (None, None)
    assert findings_before_training(start) == []


def test_a_fit_is_tried_at_larger_rates_until_one_serves():
    assert measure_before_training(problem()).fit.rate == RATES[0]
    far = measure_before_training(problem(net(outputs=1), nn.MSELoss(), (X, 300 * X[:, :1]))).fit
    assert far.rate > RATES[0]
    assert far.done
    assert not far.easy


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("last", "bounds"),
    [
        ([nn.Sigmoid()], (0.0, 1.0)),
        ([nn.Tanh()], (-1.0, 1.0)),
        ([nn.Softplus()], (0.0, None)),
        ([nn.ELU()], (-1.0, None)),
        ([nn.LogSigmoid()], (None, 0.0)),
        ([], (None, None)),
        ([nn.LeakyReLU()], (None, None)),
    ],
)
def test_bounds_of_the_outputs_are_found_by_pushing(last, bounds, seed):
    assert measure_before_training(scored(*last), seed).bounds == bounds


def test_outputs_that_nothing_moves_have_no_bounds():
    class Zero(nn.Module):
        def forward(self, x):
            return x * 0

    assert measure_before_training(scored(Zero())).bounds == (None, None)


def test_no_more_examples_are_asked_for_than_there_is_room_for():
    batch = Draw([(X[:32], Y[:32])], [32], torch.arange(32))
    few, judged = _fittable_part(problem(lambda: nn.Linear(4, 2)), batch, 0)  # ten parameters, two outputs
    assert judged
    assert len(few[0]) == len(few[1]) == 5
    assert set(few[1].tolist()) == {0, 1}
    assert _fittable_part(problem(), batch, 0) == (batch.parts[0], True)


def test_a_model_without_room_for_two_examples_is_not_judged():
    pictures = torch.randn(40, 1, 8, 8)
    made = problem(lambda: nn.Conv2d(1, 1, 1), F.mse_loss, (pictures, pictures))
    assert not _fittable_part(made, Draw([(pictures, pictures)], [40], torch.arange(40)), 0)[1]


def test_unlike_targets_are_chosen():
    assert _different(torch.tensor([1, 1, 1, 0]), 2).tolist() == [0, 3]
    assert _different(torch.tensor([[True], [True], [False]]), 2).tolist() == [0, 2]


def test_repeats_are_looked_for_where_both_data_are_in_memory():
    assert measure_before_training(problem(validation=(X[:10], Y[:10]))).repeats.found == 10
    items = [(x, y) for x, y in zip(X[:10], Y[:10], strict=True)]
    assert measure_before_training(problem(validation=items)).repeats is None
    assert measure_before_training(problem()).repeats is None


def test_looking_leaves_random_numbers_as_they_were():
    made = problem(validation=(X[:10], Y[:10]))
    before = torch.get_rng_state()
    measure_before_training(made)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("table", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_embeddings_are_asked_about_as_dense_ones(table):
    found = []
    for sparse in (False, True):
        torch.manual_seed(2)
        words = nn.Sequential(table(20, 3, sparse=sparse), nn.Flatten(), nn.LazyLinear(2))
        ids = torch.arange(240).reshape(60, 4) * 7 % 20
        words(ids[:2])
        found.append(tw.check(tw.Task(model=words, loss=nn.CrossEntropyLoss(), data=(ids, (ids.sum(1) > 38).long()))))
    assert found[0] == found[1]


class _Pairs(nn.Linear):
    def forward(self, one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return super().forward(one), super().forward(other)


@pytest.mark.parametrize("target", [torch.zeros(200), torch.zeros(200).long(), torch.ones(200, 2)])
@pytest.mark.parametrize("uses_target", [False, True])
def test_targets_that_are_all_alike_are_a_fault_only_of_a_loss_that_takes_them(target, uses_target):
    def loss(output, target):
        one, other = output
        return (one - other).square().mean() + (
            0.1 * (one.mean() - target.double()).square().mean() if uses_target else 0.0
        )

    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    found = tw.check(tw.Task(lambda: _Pairs(3, 2), loss, (x, x.flip(0), target)))
    assert ("targets all alike" in [d.symptom for d in found]) == uses_target
