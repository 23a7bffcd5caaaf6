"""Probes of a descent: what they measure, that nothing is changed by it, and what the watch makes of it in a run."""

import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import blobs, classes, network, plan, same_bits, started, walk, weights
from torch import Tensor, nn

import thalweg as tw
from thalweg.descent.gradient import compute_gradient
from thalweg.descent.probe import DescentProbe
from thalweg.descent.stepping import take_step
from thalweg.records.step_figures import StepFigures
from thalweg.see.advice import next_steps
from thalweg.see.events import event_sentences
from thalweg.watch.probe import NotMeasuredError


def noisy_network() -> nn.Module:
    return network(nn.BatchNorm1d(12), nn.Dropout(0.3), nn.ReLU())


def probed(task: tw.Task | None = None, **knobs: object):
    """A descent after 21 steps, with the probe of the last of them."""
    descent, recorder = started(task or classes(model=noisy_network), plan(**{"rule": "adamw", **knobs}))
    walk(descent, recorder, until=20)
    probe = DescentProbe(descent)
    descent.monitor.wants_update = lambda step: True
    descent.set_rate(descent.rate())
    loss, _ = compute_gradient(descent, recorder)
    probe.prepare()
    take_step(descent, loss)
    return descent, probe, loss


def state(descent):
    gradients = [None if p.grad is None else p.grad.clone() for p in descent.parameters]
    tensors = {name: value.clone() for name, value in descent.model.state_dict().items()}
    return tensors, gradients, torch.get_rng_state(), descent.model.training


def assert_same(before, after) -> None:
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert all(
        (one is None and two is None) or torch.equal(one, two) for one, two in zip(before[1], after[1], strict=True)
    )
    assert before[3] == after[3]


def test_no_probe_changes_anything() -> None:
    descent, probe, _ = probed()
    before = state(descent)
    descent.earlier = [weight - 0.01 for weight in probe.before]
    loss_at, others_at = probe.loss_along(), probe.others_along()
    for multiple in (0.0, 1.0, 100.0, 1e9):
        loss_at(multiple), others_at(multiple)
        assert_same(before, state(descent))
    for measure in (probe.unit_activity, probe.example_losses, probe.first_nonfinite, probe.fixed_answer):
        measure()
        assert_same(before, state(descent))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_loss_before_the_step_is_that_of_the_step_with_its_dropout(accumulate: int) -> None:
    task = classes(model=lambda: network(nn.Dropout(0.3)))
    _, probe, loss = probed(task, accumulate=accumulate)
    # Parts draw their dropout one after the other, from one seed.
    assert probe.loss_along()(0.0) == pytest.approx(loss, rel=1e-6)


def test_example_losses_are_those_of_the_snapshots_weights_and_carry_the_examples_numbers() -> None:
    descent, probe, _ = probed(classes())
    found = probe.example_losses()
    model = network()
    model.load_state_dict(descent.snapshot["model"])
    x, y = descent.problem.task.data
    rows = torch.tensor(list(found.examples))
    with torch.no_grad():
        assert torch.allclose(found.losses, F.cross_entropy(model(x[rows]), y[rows], reduction="none"), atol=1e-6)


def test_what_cannot_be_measured_says_what_it_would_need() -> None:
    descent, _ = started(classes(), plan(snapshot_every=0))
    probe = DescentProbe(descent)
    for measure in (probe.batch, probe.loss_along, probe.others_along, probe.example_losses, probe.replay):
        with pytest.raises(NotMeasuredError):
            measure()


def low(**knobs: object) -> tw.Plan:
    return plan(**{"rule": "adamw", "learning_rate": 1e-6, "steps": 400, "schedule": "constant", **knobs})


def test_a_rate_far_too_low_is_raised_and_the_run_learns() -> None:
    run, left = tw.train(classes(), low()), tw.train(classes(), low(watch=False))
    assert {found.name for found in run.diagnoses} <= {"learning-rate-too-low", "overfitting"}
    assert run.diagnoses[0].name == "learning-rate-too-low"
    assert 1 < run.summary["cures"]["rate_factor"] <= 30**3
    assert run.metrics["loss"] < 0.95 * left.metrics["loss"]
    assert any("to step 0" in event.message for event in run.events if event.kind == "rollback")


@pytest.mark.parametrize("stop_at", [12, 13, 14, 32, 33, 130])
def test_a_run_whose_rate_was_raised_goes_on_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    def stop(model: nn.Module, figures: StepFigures) -> None:
        if figures.step == stop_at:
            raise KeyboardInterrupt

    whole = tw.train(classes(model=noisy_network), low(steps=200))
    with pytest.raises(tw.Interrupted):
        tw.train(classes(model=noisy_network), low(steps=200), out=tmp_path / "run", on_step=stop)
    resumed = tw.resume(tmp_path / "run", classes(model=noisy_network))
    assert same_bits(whole.model, resumed.model)
    assert [found.step for found in whole.diagnoses] == [found.step for found in resumed.diagnoses]


@pytest.mark.parametrize("at", [9, 13, 17])
def test_a_run_that_was_killed_after_a_snapshots_checkpoint_goes_on_bit_for_bit(tmp_path: Path, at: int) -> None:
    def keep(model: nn.Module, figures: StepFigures) -> None:
        if figures.step == at:  # as a process that is killed now leaves it
            shutil.copytree(tmp_path / "run", tmp_path / "killed", dirs_exist_ok=True)

    made = low(steps=60, snapshot_every=4, checkpoint_seconds=0.0)
    whole = tw.train(classes(), made, out=tmp_path / "run", on_step=keep)
    assert whole.diagnoses[0].name == "learning-rate-too-low"
    resumed = tw.resume(tmp_path / "killed", classes())
    assert any(event.kind == "resume" for event in resumed.events)
    assert same_bits(whole.model, resumed.model)
    assert [found.step for found in whole.diagnoses] == [found.step for found in resumed.diagnoses]


@pytest.mark.parametrize("rule", ["adamw", "momentum", "muon"])
def test_where_nothing_is_wrong_the_watch_changes_no_bit(rule: str) -> None:
    task = classes(model=noisy_network)
    made = plan(rule=rule, steps=150, learning_rate=0.03 if rule == "momentum" else 1e-2)
    on, off = tw.train(task, made), tw.train(task, made.replace(watch=False))
    assert [found for found in on.diagnoses if found.severity != "note"] == []
    assert same_bits(on.model, off.model)


class Momentum(nn.Module):
    """Its forward pass moves an encoder of its own, and gives itself another buffer each time."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = network(), network()
        self.target.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                    slow.lerp_(fast, 0.1)
            self.calls = self.calls + 1
        return self.online(x) + 0.1 * self.target(x)


def test_probes_move_no_weight_that_the_forward_pass_moves() -> None:
    made = plan(steps=150)
    on, off = tw.train(classes(model=Momentum), made), tw.train(classes(model=Momentum), made.replace(watch=False))
    assert on.diagnoses == ()
    assert same_bits(on.model, off.model)


class Overflowing(nn.Module):
    """Finite weights and inputs, of which the second layer makes infinity on some rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(torch.where(x[:, :1] > 1e3, h.new_tensor(3e38), h) * 100)


def test_where_a_number_that_is_not_finite_is_born_the_module_is_named() -> None:
    x, y = blobs()
    x = x.clone()
    x[50, 0] = 2e3

    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return x[index], y[index]

    run = tw.train(tw.Task(model=Overflowing, loss=F.cross_entropy, data=Items()), plan(steps=12, learning_rate=1e-4))
    found = [each for each in run.diagnoses if each.name == "loss-overflow"]
    assert found
    assert "`second` (Linear)" in found[0].cause
    assert bool(torch.isfinite(weights(run.model)).all())


def test_sigmoids_over_many_layers_are_told_from_a_rate_too_low() -> None:
    def deep() -> nn.Module:
        layers = [part for _ in range(10) for part in (nn.Linear(12, 12), nn.Sigmoid())]
        return nn.Sequential(nn.Linear(4, 12), nn.Sigmoid(), *layers, nn.Linear(12, 3))

    run = tw.train(classes(model=deep), plan(rule="adamw", learning_rate=1e-3, steps=200))
    assert run.diagnoses[0].name == "vanishing-gradient"
    assert math.isfinite(run.metrics["loss"])


def test_code_that_refuses_far_weights_or_takes_gradients_itself_ends_no_run() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.scale, self.decode = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            normal = torch.distributions.Normal(  # refuses a scale of zero
                self.mean(x), self.scale(x).exp(), validate_args=True
            )
            return self.decode(normal.rsample())

    def sharpness_aware(model: nn.Module, batch: Tensor) -> Tensor:
        loss = F.mse_loss(model(batch), batch)
        if not model.training:
            return loss
        gradients = torch.autograd.grad(loss, [*model.parameters()])
        moved = {name: p + 0.01 * g for (name, p), g in zip(model.named_parameters(), gradients, strict=True)}
        return F.mse_loss(torch.func.functional_call(model, moved, (batch,)), batch)

    x = 2 * blobs()[0]
    task = tw.Task(Encoder, data=x, validation=x[:20], step=sharpness_aware)
    knobs = {"learning_rate": 0.05, "steps": 40}
    watched, alone = (tw.train(task, plan(**knobs, watch=watch)) for watch in (True, False))
    assert same_bits(watched.model, alone.model)

    _, probe, _ = probed(tw.Task(Encoder, data=x, step=sharpness_aware), learning_rate=0.05)
    loss_at = probe.loss_along()
    assert math.isfinite(loss_at(0.0))
    assert loss_at(1e9) == math.inf


def test_a_step_that_could_not_be_taken_back_is_not_taken_once_more() -> None:
    def task() -> tw.Task:
        more = iter([batch for _ in range(60) for batch in blobs()[0].split(16)])

        def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss = F.cross_entropy(model(batch[0]), batch[1])
            return loss + model(next(more)).softmax(1).square().sum(1).mean() if model.training else loss

        return tw.Task(network, data=blobs(), validation=blobs(30, seed=1), step=step)

    watched, alone = (tw.train(task(), plan(steps=40, watch=watch)) for watch in (True, False))
    assert same_bits(watched.model, alone.model)
    assert watched.summary["exact"] is False
    _, probe, _ = probed(task())
    with pytest.raises(NotMeasuredError, match="step:more"):
        probe.loss_along()(1.0)


def dead_network() -> nn.Module:
    model = network(nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU())
    with torch.no_grad():
        model[3].bias.fill_(-50.0)
    return model


@pytest.mark.parametrize("stop_at", [15, 16, 17, 40])
def test_a_run_whose_layers_were_started_anew_learns_and_goes_on_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    made = plan(rule="adamw", steps=60)

    def stop(model: nn.Module, figures: StepFigures) -> None:
        if figures.step == stop_at:
            raise KeyboardInterrupt

    whole = tw.train(classes(model=dead_network), made)
    assert [found.name for found in whole.diagnoses] == ["dead-units"]
    assert "started anew" in next(event.message for event in whole.events if event.kind == "rollback")
    assert any("3 started anew" in sentence for _, sentence in event_sentences(whole))
    assert "fan-in" in next_steps(whole)[0]
    assert (
        whole.metrics["loss"] < 0.8 * tw.train(classes(model=dead_network), made.replace(watch=False)).metrics["loss"]
    )
    try:
        tw.train(classes(model=dead_network), made, out=tmp_path / "run", on_step=stop)
    except tw.Interrupted:
        resumed = tw.resume(tmp_path / "run", classes(model=dead_network))
        assert same_bits(whole.model, resumed.model)
    else:
        assert stop_at == 16  # the step that was undone, of which nobody is told


def test_no_layer_of_a_network_that_looks_trained_is_started_anew() -> None:
    def trained() -> nn.Module:
        model = dead_network()
        with torch.no_grad():
            model[3].weight.add_(1.0)  # one direction stands out
        return model

    run = tw.train(classes(model=trained), plan(rule="adamw", steps=40))
    assert any("look trained" in event.message for event in run.events)
    assert not any("started anew" in event.message for event in run.events if event.kind == "rollback")


@pytest.mark.parametrize("rule", ["adamw", "schedule_free_adamw", "muon", "prodigy"])
@pytest.mark.parametrize("every", [0, 10])
def test_layers_that_cannot_learn_end_no_run_with_or_without_snapshots_under_any_kind_of_rule(
    rule: str, every: int
) -> None:
    knobs = {} if rule == "prodigy" else {"learning_rate": 1e-2}
    run = tw.train(classes(model=dead_network), plan(rule=rule, steps=60, snapshot_every=every, **knobs))
    assert "dead-units" in {found.name for found in run.diagnoses}
    assert (sum(event.kind == "rollback" for event in run.events) > 0) == (every > 0)
    assert math.isfinite(run.metrics["loss"])


def test_what_cures_have_changed_is_advised_for_the_next_plan() -> None:
    ended = tw.Plan(
        rule="adamw",
        learning_rate=1e-2,
        batch_size=16,
        steps=300,
        schedule=tw.schedule.linear(total=30),
        weight_decay=0.0,
    )
    assert any("Let it last" in each for each in next_steps(tw.train(classes(), ended)))
    decays = plan(rule="adamw", steps=150, weight_decay=30.0)
    assert any("weight_decay=" in each for each in next_steps(tw.train(classes(), decays)))
