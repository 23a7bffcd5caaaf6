"""A step that returns the terms of its loss by name: curves, gradients, and which one became NaN."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import blobs, classes, network, plan, started, walk, weights
from torch import Tensor, nn

import thalweg as tw
from thalweg.descent.gradient import compute_gradient
from thalweg.descent.rare_figures import RareFigures


def parts(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    outputs = model(batch[0])
    return F.cross_entropy(outputs, batch[1]), 0.01 * outputs.square().mean()


def in_terms(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    fit, size = parts(model, batch)
    return {"fit": fit, "size": size}


def own(step: Any, **changes: Any) -> tw.Task:
    return classes(loss=None, metrics={}, step=step, **changes)


def recorded(run: tw.Run, column: str) -> np.ndarray:
    values = run.history[column]
    return values[np.isfinite(values)]


@pytest.mark.parametrize("knobs", [{}, {"accumulate": 3}, {"watch": False}, {"clip_norm": 0.5}])
def test_terms_train_as_their_sum_to_the_last_bit(knobs: dict[str, Any]) -> None:
    made = plan(steps=120, digest_every=10, **knobs)
    named = tw.train(own(in_terms), made)
    summed = tw.train(own(lambda model, batch: sum(parts(model, batch))), made)
    assert weights(named.model).equal(weights(summed.model))
    assert np.array_equal(named.history["loss"], summed.history["loss"], equal_nan=True)
    assert named.metrics["loss"] == summed.metrics["loss"]


def test_measuring_beside_the_steps_leaves_no_trace_in_a_model_that_remembers() -> None:
    """Dropout, running statistics, a counter of the step's own, weights that the forward pass moves."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.count = network(nn.BatchNorm1d(12), nn.Dropout(0.2)), 0
            self.mean = nn.Parameter(torch.zeros(4), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.count += 1
                with torch.no_grad():
                    self.mean.lerp_(x.mean(0), 0.1)
            return self.net(x - self.mean) * (1 + 1e-3 * self.count)

    runs = [tw.train(own(in_terms, model=Model), plan(steps=90, watch=watch)) for watch in (True, False)]
    assert len(recorded(runs[0], "term_gradient/fit")) > 1
    assert "term_gradient/fit" not in runs[1].history
    assert weights(runs[0].model).equal(weights(runs[1].model))


def test_the_curves_add_up_and_validations_average_each_term() -> None:
    run = tw.train(own(in_terms), plan(steps=60))
    fit, size = run.history["term/fit"], run.history["term/size"]
    taken = run.history["step"] > 0
    assert np.allclose((fit + size)[taken], run.history["loss"][taken], rtol=1e-6)
    assert run.metrics["fit"] + run.metrics["size"] == pytest.approx(run.metrics["loss"], rel=1e-6)
    assert {"validation/fit", "validation/size"} <= run.history.keys()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_each_terms_gradient_norm_is_that_of_the_whole_step(accumulate: int) -> None:
    x, y = blobs()
    task = own(in_terms, model=lambda: network().double(), data=(x.double(), y))
    descent, recorder = started(task, plan(accumulate=accumulate))
    loss, _ = compute_gradient(descent, recorder)
    whole = [p.grad for p in descent.parameters]
    found = RareFigures(descent, recorder).measure(loss)
    assert all(p.grad is g for p, g in zip(descent.parameters, whole, strict=True))
    assert descent.last_draw is not None
    batch = tuple(torch.cat([part[k] for part in descent.last_draw.parts]) for k in (0, 1))
    terms = in_terms(descent.model, batch)
    assert found["terms"].keys() == found["term_gradients"].keys() == terms.keys()
    for name, term in terms.items():
        gradient = torch.autograd.grad(term, descent.parameters, retain_graph=True)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradient))
        assert found["term_gradients"][name] == pytest.approx(norm, rel=1e-9)
        assert found["terms"][name] == pytest.approx(float(term.detach()), rel=1e-9)


def test_a_steps_own_weights_hold_for_its_terms_too() -> None:
    def step(model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], int]:
        return in_terms(model, batch), len(batch[1])

    whole, cut = (started(own(step), plan(batch_size=10, accumulate=k)) for k in (1, 3))
    for descent, recorder in (whole, cut):
        compute_gradient(descent, recorder)
    assert cut[0].terms == pytest.approx(whole[0].terms, rel=1e-5)
    assert cut[0].last_draw is not None
    assert cut[0].last_draw.sizes == [4, 4, 2]


def test_memory_that_runs_out_splits_a_step_of_terms_and_its_figures_stay() -> None:
    class Hungry(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            if self.training and len(x) > 8 and room:
                raise RuntimeError("CUDA out of memory")
            return self.net(x)

    room: list[int] = []
    torch.manual_seed(0)
    task = own(in_terms, model=Hungry)
    free = started(task, plan())
    tight = started(task, plan())
    compute_gradient(*free)
    room.append(8)
    compute_gradient(*tight)
    assert tight[0].accumulate == 2
    assert tight[0].terms == pytest.approx(free[0].terms, rel=1e-5)


def test_memory_that_runs_out_beside_the_steps_ends_the_measuring_alone() -> None:
    calls: list[int] = []

    def step(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        calls.append(1)
        return in_terms(model, batch)

    descent, recorder = started(own(step), plan())
    rare = RareFigures(descent, recorder)
    loss, _ = compute_gradient(descent, recorder)
    objective = descent.problem.objective

    def fails(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    objective.losses = fails  # type: ignore[method-assign]
    assert rare.measure(loss)["term_gradients"] == {}
    assert rare.measure(loss)["term_gradients"] == {}
    (event,) = recorder.history.events()
    assert event.message == "From here on the gradient of each term is not measured any more: memory ran out."


def test_the_entry_loss_is_descended_and_the_others_are_followed() -> None:
    def step(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        fit, size = parts(model, batch)
        return {"loss": fit, "size": size, "spread": model(batch[0]).std().detach()}

    run = tw.train(own(step), plan())
    alone = tw.train(own(lambda model, batch: parts(model, batch)[0]), plan())
    assert weights(run.model).equal(weights(alone.model))
    assert "term/loss" not in run.history
    assert recorded(run, "term_gradient/spread").tolist() == [0.0]
    assert recorded(run, "term_gradient/size")[0] > 0
    assert not any("no gradient" in note for note in run.summary["notes"])


def test_a_term_without_a_gradient_is_part_of_the_sum_and_said() -> None:
    run = tw.train(own(lambda model, batch: {**in_terms(model, batch), "offset": torch.tensor(3.0)}), plan())
    assert (run.history["loss"][1:] > 3).all()
    assert any("`offset` had no gradient at first" in note for note in run.summary["notes"])


def test_terms_may_come_in_later_and_that_is_said() -> None:
    count = [0]

    def step(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        terms = in_terms(model, batch)
        count[0] += model.training
        return terms if count[0] > 40 else {"fit": terms["fit"]}

    run = tw.train(own(step), plan(steps=60))
    late = run.history["term/size"]
    first = int(run.history["step"][np.isfinite(late)][0])
    assert 1 < first < 60
    assert any(e.message == f"`size` comes in as a term of the loss at step {first}." for e in run.events)


def test_names_that_change_at_every_step_are_refused_before_they_fill_the_history() -> None:
    count = [0]

    def step(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        count[0] += model.training
        return {f"loss {count[0]}": parts(model, batch)[0]}

    with pytest.raises(tw.TaskError, match=r"65 different terms up to step 65.*Call each by the same name"):
        tw.train(own(step), plan(steps=100))


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda fit: {}, "`step` returned an empty dict"),
        (lambda fit: {"fit": fit, "kl": 0.1}, "`step` returned a dict whose entry 'kl' is a float"),
        (lambda fit: {"fit": fit, "kl": fit.expand(3)}, "entry 'kl' has the shape"),
        (lambda fit: {1: fit}, "the key 1"),
        (lambda fit: {"a": fit.detach()}, "The loss has no gradient"),
        (lambda fit: {"fit": fit, "kl": fit * math.nan}, r"The loss is nan \(of its terms `kl`\) at the very start"),
    ],
)
def test_bad_terms_are_refused_before_the_first_step(returned: Any, told: str) -> None:
    with pytest.raises(tw.TaskError, match=told):
        tw.train(own(lambda model, batch: returned(parts(model, batch)[0])), plan())


def test_terms_from_a_loss_are_refused_and_it_says_where_they_may_come_from() -> None:
    with pytest.raises(tw.TaskError, match=r"The loss is a dict\. Return the sum .* or give step\(model, batch\)"):
        tw.train(classes(loss=lambda output, target: {"fit": F.cross_entropy(output, target)}, metrics={}), plan())


def test_a_term_that_goes_bad_later_is_refused_by_name() -> None:
    count = [0]

    def step(model: nn.Module, batch: Any) -> dict[str, Any]:
        count[0] += model.training
        fit, size = parts(model, batch)
        return {"fit": fit, "size": size if count[0] < 40 else size.item()}

    with pytest.raises(tw.TaskError, match="entry 'size' is a float"):
        tw.train(own(step), plan(steps=80))


def test_a_resumed_run_of_terms_is_bitwise_the_uninterrupted_one(tmp_path: Any) -> None:
    def stop(model: nn.Module, figures: Any) -> None:
        if figures.step == 43:
            raise KeyboardInterrupt

    made = plan(steps=110, digest_every=1)
    whole = tw.train(own(in_terms), made, out=tmp_path / "whole")
    with pytest.raises(tw.Interrupted):
        tw.train(own(in_terms), made, out=tmp_path / "cut", on_step=stop)
    resumed = tw.resume(tmp_path / "cut", own(in_terms))
    assert weights(resumed.model).equal(weights(whole.model))
    for column in ("term/fit", "term/size", "term_gradient/fit", "term_gradient/size", "noise/trace"):
        assert np.array_equal(resumed.history[column], whole.history[column], equal_nan=True), column


def test_the_term_that_became_nan_is_named_where_the_batch_is_left_out() -> None:
    x, y = blobs()
    x[50] = 9.0

    def step(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        terms = in_terms(model, batch)
        return terms | {"size": terms["size"] * math.nan} if batch[0].max() > 8 else terms

    run = tw.train(own(step, data=(x, y)), plan(shuffle=False))
    first = next(d for d in run.diagnoses if d.symptom == "non-finite")
    assert first.step == 4
    assert 'term "size" became NaN at step 4 while "fit" stayed finite' in first.cause
    told = next(e.message for e in run.events if "left out" in e.message)
    assert 'Term "size" became NaN at step 4 while "fit" stayed finite.' in told


def test_the_term_whose_gradient_is_not_finite_is_named() -> None:
    x, y = blobs()
    x[50] = 9.0

    def step(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        terms = in_terms(model, batch)
        return terms | {"size": (0 * terms["size"]).sqrt()} if batch[0].max() > 8 else terms

    run = tw.train(own(step, data=(x, y)), plan(shuffle=False))
    first = next(d for d in run.diagnoses if d.symptom == "non-finite")
    assert 'The gradient of term "size" is not finite, that of "fit" is.' in first.cause


def test_a_sum_that_overflows_though_its_terms_do_not_is_said() -> None:
    x, y = blobs()
    x[50] = 9.0

    def step(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        terms = in_terms(model, batch)
        huge = torch.full((), 3e38)
        return terms | {"a": huge, "b": huge} if batch[0].max() > 8 else terms | {"a": 0 * huge, "b": 0 * huge}

    run = tw.train(own(step, data=(x, y)), plan(shuffle=False))
    first = next(d for d in run.diagnoses if d.symptom == "non-finite")
    assert "each of its terms is finite, but what was made of them is not" in first.cause


def test_terms_that_are_not_named_leave_the_history_as_it_was() -> None:
    descent, recorder = started(classes(), plan())
    walk(descent, recorder)
    assert not any(column.startswith("term") for column in recorder.history.columns())
