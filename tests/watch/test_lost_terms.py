"""Which term of a loss was lost first, in the window and in a loop of one's own."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg as tw
from thalweg.records.step_figures import StepFigures
from thalweg.watch.lost_terms import LostTerms
from thalweg.watch.window import Window

NAN, INF = math.nan, math.inf


def window(*terms):
    seen = Window()
    for step, each in enumerate(terms, 1):
        seen.push(StepFigures(step, sum(each.values()), 0.1, 1.0, terms=each))
    return seen


def test_the_first_is_kept_while_others_follow_and_forgotten_once_all_are_finite():
    lost = window({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": NAN}, {"a": NAN, "b": NAN}).lost_terms
    assert str(lost) == 'term "b" became NaN at step 2 while "a" stayed finite'
    assert window({"a": NAN}, {"a": 1.0}).lost_terms is None
    again = window({"a": NAN, "b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": INF}).lost_terms
    assert str(again) == 'term "b" became infinite at step 3 while "a" stayed finite'


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        (LostTerms(1812, {"a": NAN, "b": NAN}, ()), 'terms "a" and "b" became NaN at step 1,812'),
        (
            LostTerms(3, {"a": NAN, "b": INF}, ("c",)),
            'terms "a" and "b" became NaN or infinite at step 3 while "c" stayed finite',
        ),
        (
            LostTerms(3, {"a": NAN}, tuple("bcdef")),
            'term "a" became NaN at step 3 while "b", "c", "d" and 2 more stayed finite',
        ),
    ],
)
def test_it_is_said_in_words(lost, told):
    assert str(lost) == told


def test_it_survives_a_checkpoint_and_an_old_one_has_none():
    seen, other = window({"a": 1.0, "b": NAN}), Window()
    state = seen.state_dict()
    other.load_state_dict(state)
    assert str(other.lost_terms) == str(seen.lost_terms)
    del state["lost_terms"]
    other.load_state_dict(state)
    assert other.lost_terms is None


class Own:
    """A loop with a loss of two terms, one of which becomes NaN at a step."""

    def __init__(self, lost_at=10**9, optimizer=torch.optim.SGD, **options):
        torch.manual_seed(0)
        self.model = nn.Linear(4, 4)
        self.optimizer, self.lost_at = optimizer(self.model.parameters(), lr=0.01), lost_at
        self.watch, self.step = tw.Watch(self.model, self.optimizer, **options), 0

    def terms(self, x):
        out = self.model(x)
        return {
            "reconstruction": F.mse_loss(out, x),
            "kl": out.square().mean() * (NAN if self.step >= self.lost_at else 0.1),
        }

    def run(self, steps, closure=True):
        for self.step in range(1, steps + 1):
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(self.step))
            terms = self.terms(x)
            sum(terms.values()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.watch.step(terms, closure=(lambda x=x: self.terms(x)) if closure else None)
        self.watch.close()
        return self.watch.diagnoses


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, tw.optim.SGD])
def test_a_loop_of_ones_own_is_told_which_term_became_nan_first(optimizer):
    found = Own(lost_at=30, optimizer=optimizer).run(31)
    assert found[0].symptom == "non-finite"
    assert found[0].step == 30
    assert 'term "kl" became NaN at step 30 while "reconstruction" stayed finite' in found[0].cause


def test_the_gradient_of_each_term_is_measured_where_the_closure_gives_them():
    loop = Own()
    assert loop.run(100) == []
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(100))
    for name, term in loop.terms(x).items():
        gradient = torch.cat(
            [g.flatten() for g in torch.autograd.grad(term, loop.model.parameters(), retain_graph=True)]
        )
        assert loop.watch.term_gradients[name] == pytest.approx(float(gradient.norm()), rel=1e-6)
    without = Own()
    without.run(100, closure=False)
    assert without.watch.term_gradients == {}
    assert torch.equal(loop.model.weight, without.model.weight)
    assert all(p.grad is None for p in loop.model.parameters())


def test_accumulated_terms_are_averaged_over_the_batches_of_a_step():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tw.Watch(model, optimizer) as watch:
        watch.step({"a": 1.0, "b": 2.0})
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        watch.step({"a": 3.0})
        assert watch._monitor.window.terms == {"a": 2.0, "b": 1.0}
        assert watch._monitor.window.loss == 3.0


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ({}, "`loss` is an empty dict"),
        ({3: 1.0}, "the key 3"),
        ({"a": 1.0, "kl": torch.ones(3)}, r"`loss\['kl'\]` is a tensor of shape \(3,\)"),
        ({"a": 1.0, "kl": "none"}, r"`loss\['kl'\]` is 'none'"),
        ({"a": 1.0, "kl": None}, r"`loss\['kl'\]` is None"),
    ],
)
def test_bad_terms_are_refused_by_name(loss, told):
    model = nn.Linear(2, 1)
    with tw.Watch(model, torch.optim.SGD(model.parameters(), lr=0.1)) as watch:
        with pytest.raises(tw.ArgumentError, match=told):
            watch.step(loss)


def test_the_entry_loss_is_the_loss():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tw.Watch(model, optimizer) as watch:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        watch.step({"a": 1.0, "loss": torch.tensor(5.0)})
        assert (watch._monitor.window.loss, watch._monitor.window.terms) == (5.0, {"a": 1.0})
