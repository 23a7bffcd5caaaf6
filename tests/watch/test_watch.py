"""The watch in a loop of one's own, with PyTorch's optimisers and ours."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg as tw
from thalweg.watch.symptom import FIRST_STEPS

OURS = {"torch": torch.optim.AdamW, "thalweg": tw.optim.AdamW}


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1024, 20, generator=generator)
    y = (x @ torch.randn(20, 5, generator=generator)).argmax(1)
    return x, y


def mlp(activation=nn.ReLU, depth=2, width=32):
    torch.manual_seed(0)
    layers = []
    for number in range(depth):
        layers += [nn.Linear(width if number else 20, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 5))


def loop(model, optimizer, steps, x=None, y=None, *, cured=False, closure=True, batch=32, watch=None, **options):
    """A loop as people write it; gives the diagnoses, and the loss of all examples at the end."""
    given = data()
    x, y = given[0] if x is None else x, given[1] if y is None else y
    generator = torch.Generator().manual_seed(1)
    with tw.Watch(model, optimizer, **options) as watch:
        for _ in range(steps):
            rows = torch.randint(len(x), (batch,), generator=generator)
            xb, yb = x[rows], y[rows]
            loss = F.cross_entropy(model(xb), yb)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            again = (lambda xb=xb, yb=yb: F.cross_entropy(model(xb), yb)) if closure else None
            for found in watch.step(loss, closure=again, indices=rows):
                if cured:
                    watch.apply(found)
    return watch.diagnoses, float(F.cross_entropy(model(x), y).detach())


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("whose", OURS)
def test_a_healthy_loop_is_left_as_it_is(whose):
    watched, alone = mlp(), mlp()
    found, _ = loop(watched, OURS[whose](watched.parameters(), lr=3e-3), 300)
    assert [each for each in found if each.severity != "note"] == []
    optimizer, generator = OURS[whose](alone.parameters(), lr=3e-3), torch.Generator().manual_seed(1)
    x, y = data()
    for _ in range(300):
        rows = torch.randint(len(x), (32,), generator=generator)
        F.cross_entropy(alone(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(weights(watched), weights(alone))


def test_no_hook_is_left_behind():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    hooks = [model._forward_pre_hooks, optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    with tw.Watch(model, optimizer) as watch:
        assert all(hooks)
    assert not any(hooks)
    assert watch.step(1.0) == []
    watch.close()


@pytest.mark.parametrize("whose", OURS)
def test_a_rate_far_too_low_is_named_and_raised_as_far_as_the_steps_allow(whose):
    model, bare = mlp(), mlp()
    found, cured = loop(model, OURS[whose](model.parameters(), lr=1e-6), 500, cured=True)
    assert found[0].name == "learning-rate-too-low"
    assert found[0].cure.code == "watch.change(rate_factor=30)"
    _, left = loop(bare, OURS[whose](bare.parameters(), lr=1e-6), 500)
    assert cured < 0.5 * left


def test_without_a_closure_what_needs_one_is_said_not_to_be_measured():
    model = mlp(nn.Sigmoid, depth=10)
    found, _ = loop(model, torch.optim.AdamW(model.parameters(), lr=1e-3), 200, closure=False)
    assert [each.name for each in found] == ["vanishing-gradient"]
    assert any("needs `closure=`" in each for each in found[0].not_measured)


def test_a_rate_too_high_is_named_and_one_line_goes_back_and_lowers_it():
    model = mlp()
    found, loss = loop(model, torch.optim.SGD(model.parameters(), lr=10.0), 500, cured=True)
    assert (found[0].name, found[0].severity) == ("learning-rate-too-high", "critical")
    assert found[0].step <= 20
    assert "watch." in found[0].cure.code
    assert loss < 0.8


def test_a_schedule_goes_on_as_it_was_while_the_rate_is_lowered():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with tw.Watch(model, optimizer) as watch:
        watch.change(rate_factor=0.25)
        before = weights(model)
        F.cross_entropy(model(data()[0]), data()[1]).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        optimizer.step()
        assert torch.allclose(weights(model), before - 0.25 * gradient, atol=1e-6)
        assert optimizer.param_groups[0]["lr"] == 1.0
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == 0.5


def test_rows_that_are_not_finite_are_named_by_their_indices():
    x, y = data()
    x = x.clone()
    x[7, 3] = math.nan
    model = mlp()
    found, _ = loop(model, torch.optim.AdamW(model.parameters(), lr=1e-2), 200, x, y, cured=True)
    assert {each.name for each in found} == {"bad-data"}
    assert {each.examples for each in found} == {(7,)}
    assert bool(torch.isfinite(weights(model)).all())


@pytest.mark.parametrize("whose", OURS)
def test_after_one_such_batch_the_next_ones_are_left_out_and_the_training_gets_on(whose):
    x, y = data()
    x = x.clone()
    x[::200] = math.nan  # in a batch of seven
    model, clean = mlp(), mlp()
    options = {"on_nonfinite": "skip"} if whose == "thalweg" else {}
    found, _ = loop(model, OURS[whose](model.parameters(), lr=1e-2, **options), 400, x, y, cured=True)
    assert {each.name for each in found} == {"bad-data"}
    keep = torch.isfinite(x).all(1)
    after = float(F.cross_entropy(model(x[keep]), y[keep]).detach())
    _, before = loop(clean, OURS[whose](clean.parameters(), lr=1e-2), 130)
    assert after < before + 0.1


@pytest.mark.parametrize("where", ["first layer", "all"])
def test_a_gradient_that_is_no_number_is_seen_though_the_loss_is_one(where):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tw.Watch(model, optimizer) as watch:
        loss = F.cross_entropy(model(data()[0]), data()[1])
        loss.backward()
        for parameter in [model[0].weight] if where == "first layer" else model.parameters():
            parameter.grad[0] = math.nan
        optimizer.step()
        (found,) = watch.step(loss)
    assert found.symptom == "non-finite"


@pytest.mark.parametrize("given", ["closure", "per_example"])
def test_the_examples_of_a_spike_are_named(given):
    x, y = data()
    spoilt = x.clone()
    spoilt[5] *= 200
    model = mlp()
    optimizer, rows, named = torch.optim.SGD(model.parameters(), lr=0.02), torch.randperm(1024), set()
    with tw.Watch(model, optimizer) as watch:
        for step in range(320):
            chosen = rows[32 * step % 1024 :][:32]
            x = data()[0] if step < 160 else spoilt
            each = F.cross_entropy(model(x[chosen]), y[chosen], reduction="none")
            each.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            options = {
                "closure": lambda: F.cross_entropy(model(x[chosen]), y[chosen]),  # noqa: B023
                "per_example": each,
            }
            for found in watch.step(each.mean(), indices=chosen, **{given: options[given]}):
                if found.name == "bad-batch":
                    named |= set(found.examples)
    assert named == {5}


@pytest.mark.parametrize("kind", ["targets", "inputs of a batch normalisation"])
def test_bad_examples_that_come_in_every_epoch_are_a_warning_and_named(kind):
    x, _ = data()
    bad = torch.arange(0, 1024, 128) + 50  # one in every fourth batch
    torch.manual_seed(0)
    if kind == "targets":
        y = x @ torch.randn(20, 1) / 4
        y[bad] += 300
        model, criterion = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1)), F.mse_loss
    else:
        x[bad] *= 300
        y, criterion = data()[1], F.cross_entropy
        model = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with tw.Watch(model, optimizer) as watch:
        for step in range(256):
            rows = torch.arange(1024)[32 * step % 1024 :][:32]
            loss = criterion(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.step(loss, closure=lambda rows=rows: criterion(model(x[rows]), y[rows]), indices=rows)
    first = watch.diagnoses[0]
    assert (first.name, first.severity) == ("bad-batch", "warning")
    named = {example for each in watch.diagnoses if each.name == "bad-batch" for example in each.examples}
    assert named
    assert named <= set(bad.tolist())


def test_wrong_labels_that_a_trained_network_is_sure_of_are_no_fault_of_the_rate():
    x, y = data()
    model = mlp()
    loop(model, torch.optim.AdamW(model.parameters(), lr=3e-3), 400)
    y = y.clone()
    y[::100] = (y[::100] + 1) % 5  # some wrong labels, which a trained network is very sure about
    found, _ = loop(model, torch.optim.SGD(model.parameters(), lr=1e-3), 200, x=x, y=y)
    assert {each.name for each in found if each.severity != "note"} <= {"bad-batch"}
    assert all(example % 100 == 0 for each in found for example in each.examples)


def test_a_logarithm_that_is_not_finite_everywhere_is_told_from_steps_that_ran_away():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    x = torch.randn(512, 4)
    with torch.no_grad():
        model.weight.fill_(0.01)
        model.bias.fill_(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    criterion = lambda out: (out.log() + 3).square().mean()  # noqa: E731  # the outputs come near to zero, and below it
    with tw.Watch(model, optimizer) as watch:
        for step in range(400):
            rows = torch.arange(512)[32 * step % 512 :][:32]
            loss = criterion(model(x[rows]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if watch.step(loss, closure=lambda rows=rows: criterion(model(x[rows]))):
                break
    (found,) = watch.diagnoses
    assert found.name == "loss-overflow"
    assert "all at once" in found.cause


def test_units_that_the_first_steps_put_off_are_a_consequence_of_the_rate():
    model = mlp(depth=3)
    x, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with tw.Watch(model, optimizer) as watch:
        for _ in range(16):
            loss = F.cross_entropy(model(x[:32]), y[:32])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                model[2].bias -= 1.0  # as long steps do
            watch.step(loss, closure=lambda: F.cross_entropy(model(x[:32]), y[:32]))
    assert watch.diagnoses[0].name == "learning-rate-too-high"
    assert "dead-units" not in {each.name for each in watch.diagnoses}


def test_weights_that_no_optimiser_steps_are_named():
    model = mlp()
    found, _ = loop(model, torch.optim.AdamW(model[2].parameters(), lr=1e-9), 200)
    assert found[0].name == "no-gradient"
    assert "no optimiser steps 0.weight" in found[0].cause


@pytest.mark.parametrize(("action", "error"), [("warn", None), ("raise", tw.NonFiniteError)])
def test_what_is_done_is_the_persons_choice(action, error):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = tw.Watch(model, optimizer, action=action)
    if error is None:
        with pytest.warns(RuntimeWarning, match="non-finite"):
            watch.step(torch.tensor(math.nan))
    else:
        with pytest.raises(error, match="non-finite"):
            watch.step(torch.tensor(math.nan))
    called = []
    tw.Watch(model, optimizer, action=called.append).step(math.nan)
    assert [each.symptom for each in called] == ["non-finite"]


def test_a_watch_that_fails_says_so_once_and_stands_aside(monkeypatch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = tw.Watch(model, optimizer)
    monkeypatch.setattr(watch._monitor, "observe", lambda *_: 1 / 0)
    F.cross_entropy(model(data()[0]), data()[1]).backward()
    optimizer.step()
    with pytest.warns(RuntimeWarning, match="The watch failed and stands aside: ZeroDivisionError"):
        assert watch.step(1.0) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        assert watch.step(1.0) == []


BAD = {
    "a model that is none": (lambda m, o: tw.Watch("model", o), "needs the network"),
    "an optimiser that is none": (lambda m, o: tw.Watch(m, m), "needs the torch.optim.Optimizer"),
    "an optimiser of another model": (lambda m, o: tw.Watch(mlp(), o), "None of the 6 parameters"),
    "an action that is none": (lambda m, o: tw.Watch(m, o, action="rais"), "raise"),
    "a loss of several numbers": (lambda m, o: tw.Watch(m, o).step(torch.ones(3)), "give its mean"),
    "a loss that is none": (lambda m, o: tw.Watch(m, o).step("low"), "takes one number a step"),
    "going back to nothing": (lambda m, o: tw.Watch(m, o, snapshot_every=0).go_back(), "no snapshot to go back to"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case):
    call, text = BAD[case]
    model = mlp()
    with pytest.raises(tw.ArgumentError, match=text):
        call(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_steps_in_parts_are_one_step_with_the_mean_of_their_losses():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tw.Watch(model, optimizer) as watch:
        for loss in (1.0, 3.0):
            F.cross_entropy(model(data()[0]), data()[1]).backward()
            if loss == 3.0:
                optimizer.step()
            watch.step(loss)
        assert watch._monitor.window.loss == 2.0
        assert watch._monitor.window.step == 1


def test_the_examples_of_a_step_in_parts_are_those_of_all_its_parts():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tw.Watch(model, optimizer) as watch:
        for _ in range(2):
            for part in range(3):
                F.cross_entropy(model(data()[0][:4]), data()[1][:4]).backward()
                if part == 2:
                    optimizer.step()
                watch.step(1.0)
            assert watch._monitor.window.examples == 12


def test_after_going_back_weights_and_the_optimisers_state_are_those_of_the_snapshot():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = data()
    with tw.Watch(model, optimizer, snapshot_every=3) as watch:
        kept = None
        for step in range(1, 6):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.step(loss)
            if step == 3:
                kept = weights(model), optimizer.state[model[0].weight]["exp_avg"].clone()
        watch.go_back()
        assert torch.equal(weights(model), kept[0])
        assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], kept[1])


class Momentum(nn.Module):
    """Its forward pass moves an encoder of its own, and gives itself another buffer each time."""

    def __init__(self):
        super().__init__()
        self.online, self.target = mlp(), mlp()
        self.target.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        self.calls = self.calls + 1
        return self.online(x) + 0.1 * self.target(x)


def test_a_closure_moves_no_weight_that_the_forward_pass_moves():
    states = []
    for closure in (True, False):
        model = Momentum()
        loop(model, torch.optim.AdamW(model.online.parameters(), lr=3e-3), 150, closure=closure)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    # `loop` measures the end by one more call of each.
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_units_that_are_all_off_are_named_in_the_first_steps_though_the_loss_still_falls():
    model = mlp(depth=3)
    with torch.no_grad():
        model[2].bias.fill_(-50.0)
    found, _ = loop(model, torch.optim.AdamW(model.parameters(), lr=1e-3), 40)
    assert [(each.name, each.step) for each in found] == [("dead-units", 16)]


def test_what_stands_at_the_constant_answer_from_a_higher_start_is_stagnant():
    x, _ = data()
    y = torch.randint(5, (1024,), generator=torch.Generator().manual_seed(3))
    model = mlp()
    with torch.no_grad():
        model[4].weight.mul_(40)  # so that the loss starts far above that of any fixed answer
    found, _ = loop(model, torch.optim.AdamW(model.parameters(), lr=3e-4), 900, x, y)
    assert {each.symptom for each in found if each.severity != "note"} <= {"stagnant"}


@pytest.mark.parametrize("rule", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_a_decay_that_outweighs_the_gradient_is_named_in_either_form(rule):
    model = mlp()
    decay = {torch.optim.SGD: 0.5, torch.optim.Adam: 0.5, torch.optim.AdamW: 30.0}[rule]
    rate = 0.1 if rule is torch.optim.SGD else 3e-3
    found, _ = loop(model, rule(model.parameters(), lr=rate, weight_decay=decay), 400)
    assert "weight-decay-too-high" in {each.name for each in found}


class Normalised(nn.Module):
    """Layers with a normalisation between, whose first weights are as large as they are made."""

    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(20, 32), nn.LayerNorm(32, eps=1e-12), nn.Linear(32, 5)
        with torch.no_grad():
            self.first.weight.mul_(scale)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


@pytest.mark.parametrize(("scale", "named"), [(1.0, False), (1e-4, True)])
def test_weights_that_one_step_turns_around_before_a_normalisation_are_named(scale, named):
    model = Normalised(scale)
    found, _ = loop(model, torch.optim.AdamW(model.parameters(), lr=1e-2), 60)
    assert ("unstable-norm" in {each.name for each in found}) == named


@pytest.mark.parametrize(
    ("kind", "rate", "named"), [("bfloat16", 1e-4, True), ("bfloat16", 3e-2, False), ("float32", 1e-4, False)]
)
def test_steps_that_sixteen_bits_round_away_are_named(kind, rate, named):
    model = mlp().to(getattr(torch, kind))
    x, y = data()
    found, _ = loop(model, torch.optim.AdamW(model.parameters(), lr=rate), 60, x.to(getattr(torch, kind)), y)
    assert ("low-precision" in {each.name for each in found}) == named


def test_what_is_not_finite_in_float16_is_laid_to_the_format():
    model = mlp().half()
    x, y = data()
    found, _ = loop(model, torch.optim.Adam(model.parameters(), lr=1e-2), 30, x.half(), y)
    assert found[0].name == "low-precision"
    assert found[0].symptom == "non-finite"


@pytest.mark.parametrize(("gain", "named"), [(1.0, False), (30.0, True)])
def test_outputs_far_too_large_at_the_start_are_named(gain, named):
    model = mlp(depth=3)
    with torch.no_grad():
        model[6].weight.mul_(gain**2)
    found, _ = loop(model, torch.optim.AdamW(model.parameters(), lr=1e-2), 20)
    assert ("exploding-gradient" in {each.name for each in found}) == named


def descend(model, optimizer, schedule, steps, *, cured=True):
    """A loop with a schedule that knows how long it is; gives the diagnoses, the watch's rates and the loss at the end."""
    x, y = data()
    generator, rates = torch.Generator().manual_seed(1), []
    optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    with tw.Watch(model, optimizer, total=steps) as watch:
        optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
        for _ in range(steps):
            rows = torch.randint(len(x), (32,), generator=generator)
            xb, yb = x[rows], y[rows]
            loss = F.cross_entropy(model(xb), yb)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            for found in watch.step(loss, closure=lambda xb=xb, yb=yb: F.cross_entropy(model(xb), yb)):
                if cured:
                    watch.apply(found)
    return watch.diagnoses, rates[1::2], float(F.cross_entropy(model(x), y).detach())


def test_a_schedule_that_ends_early_goes_on_from_where_it_was_seen():
    ends = []
    for cured in (False, True):
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 40))
        found, rates, end = descend(model, optimizer, schedule, 400, cured=cured)
        ends.append(end)
        assert [each.name for each in found] == ["schedule-ended-early"]
        assert (max(rates[100:]) > 5e-3) == cured
        assert optimizer.param_groups[0]["lr"] == 0.0  # the person's
    assert ends[1] < 0.5 * ends[0]


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "plateau"])
def test_no_usual_schedule_ends_early(shape):
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    factor = {
        "cosine": lambda step: 0.5 * (1 + math.cos(math.pi * step / 400)),
        "linear": lambda step: 1 - step / 400,
        "constant": lambda step: 1.0,
        "plateau": lambda step: 0.1 ** (step // 300),
    }[shape]
    found, _, _ = descend(model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor), 400)
    assert found == []


def test_first_steps_that_jump_and_come_down_at_the_same_rate_lack_a_warm_up():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = data()
    with tw.Watch(model, optimizer, total=300) as watch:
        for step in range(60):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            lifted = loss.detach() * (
                8.0 if step in (1, 2, 3) else 1.0
            )  # as the first steps of a fresh second moment do
            for found in watch.step(lifted):
                watch.apply(found)
    assert [each.name for each in watch.diagnoses] == ["missing-warm-up"]
    assert watch.diagnoses[0].cure.warmup == 32


def test_frozen_weights_are_noted_where_the_loss_stands():
    model = mlp()
    *rest, _ = model.parameters()
    for parameter in rest:
        parameter.requires_grad_(False)
    found, _ = loop(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2), 300)
    assert [(each.name, each.severity) for each in found] == [("no-gradient", "note")]
    assert "frozen" in found[0].cause


FAULTY = {
    "dead-units": lambda model: [nn.init.constant_(model[k].bias, -50.0) for k in (2, 4)],
    "saturated-units": lambda model: [model[k].weight.mul_(60.0) for k in (2, 4)],
}


@pytest.mark.parametrize("cause", FAULTY)
def test_layers_that_cannot_learn_are_started_anew_once_and_then_learn(cause):
    ends = []
    for cured in (False, True):
        model = mlp(nn.Tanh if cause == "saturated-units" else nn.ReLU, depth=3)
        with torch.no_grad():
            FAULTY[cause](model)
        found, end = loop(model, torch.optim.AdamW(model.parameters(), lr=1e-2), 300, cured=cured)
        assert [each.name for each in found if each.name == cause] == [cause]
        assert found[0].cure.restart
        ends.append(end)
    assert ends[1] < 0.5 * ends[0]


def test_layers_are_started_anew_on_a_batch_or_not_at_all():
    model = mlp()
    with tw.Watch(model, torch.optim.SGD(model.parameters(), lr=0.1)) as watch:
        F.cross_entropy(model(data()[0]), data()[1]).backward()
        with pytest.raises(tw.ArgumentError, match="closure"):
            watch.restart(["0"])


def test_what_goes_on_is_told_now_and_then_only_and_anew_after_something_was_done():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tw.Watch(model, optimizer) as watch:
        for step in range(150):
            F.cross_entropy(model(data()[0][:32]), data()[1][:32]).backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.step(1.0 if step < 30 else 10.0 + step)
        told = [each.step for each in watch.diagnoses]
        assert len(told) == 2
        assert told[1] == told[0] + 100
        watch.change(rate_factor=0.5)
        F.cross_entropy(model(data()[0][:32]), data()[1][:32]).backward()
        optimizer.step()
        assert len(watch.step(500.0)) == 1


def test_the_rate_of_a_rule_that_finds_its_own_is_not_judged():
    model = mlp()
    found, _ = loop(model, tw.optim.Prodigy(model.parameters(), lr=1e-4), 100)
    assert "learning-rate-too-low" not in {each.name for each in found}


def test_what_only_watches_leaves_settings_that_an_optimiser_changes_itself():
    class Halves(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.param_groups[0]["lr"] *= 0.5

    model = mlp()
    optimizer = Halves(model.parameters(), lr=0.1)
    loop(model, optimizer, 3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 8)


def test_integer_parameters_are_watched_beside_the_others():
    model = mlp()
    model.extra = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    found, _ = loop(model, torch.optim.AdamW(model.parameters(), lr=1e-2), 60)
    assert found == []


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("size", [8, 32])
def test_the_noise_of_batches_is_no_jump(spread, size):
    alarms = 0
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(512, 4, generator=generator)
        y = (x.sum(1, keepdim=True) + torch.randn(512, 1, generator=generator)) * torch.exp(
            spread * torch.randn(512, 1, generator=generator)
        )
        torch.manual_seed(seed)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with tw.Watch(model, optimizer) as watch:
            for rows in torch.randperm(512, generator=generator).split(size)[:20]:
                loss = F.mse_loss(model(x[rows]), y[rows])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                watch.step(loss)
        alarms += any(FIRST_STEPS in each.evidence for each in watch.diagnoses)
    assert alarms == 0


@pytest.mark.parametrize("factor", ["exponential", "steps"])
def test_a_rate_that_comes_down_slowly_has_not_ended_early(factor):
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    factors = {
        "exponential": lambda step: 1e-4 ** (step / 400),
        "steps": lambda step: 0.1 ** sum(step >= share * 400 for share in (0.5, 0.65, 0.75)),
    }
    found, _, _ = descend(model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factors[factor]), 400)
    assert found == []


def test_a_new_head_on_a_trained_trunk_keeps_its_low_rate():
    trunk = mlp()
    loop(trunk, torch.optim.AdamW(trunk.parameters(), lr=3e-2), 300)
    torch.manual_seed(1)
    trunk[4] = nn.Linear(32, 5)
    found, _ = loop(trunk, torch.optim.AdamW(trunk.parameters(), lr=2e-5), 200, total=1000)
    assert "learning-rate-too-low" not in {each.name for each in found}


def test_small_targets_are_no_exploding_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 1))
    x = data()[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with tw.Watch(model, optimizer) as watch:
        for rows in torch.arange(1024).split(32):
            y = 0.01 * x[rows, :1]
            loss = F.mse_loss(model(x[rows]), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.step(loss, closure=lambda rows=rows, y=y: F.mse_loss(model(x[rows]), y))
    assert "exploding-gradient" not in {each.name for each in watch.diagnoses}


@pytest.mark.parametrize(("jumps", "name"), [(True, "stale-second-moment"), (False, "learning-rate-too-high")])
def test_gradients_that_grew_are_told_from_steps_that_were_too_long(jumps, name):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.9999))
    x, y = data()
    generator = torch.Generator().manual_seed(1)
    with tw.Watch(model, optimizer) as watch:
        for step in range(140):
            rows = torch.randint(len(x), (32,), generator=generator)
            scale = 1000.0 if jumps and step >= 80 else 1.0
            if not jumps and step == 80:
                optimizer.param_groups[0]["lr"] = 3.0

            def closure(rows=rows, scale=scale):
                return scale * F.cross_entropy(model(x[rows]), y[rows])

            loss = closure()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found = [each for each in watch.step(loss, closure=closure) if each.symptom == "diverging"]
            if found:
                break
        assert found[0].name == name
        watch.apply(found[0])
        assert bool(optimizer.state) != (name == "stale-second-moment")


def test_an_average_of_the_weights_is_that_of_the_closed_form_and_is_given_back():
    seen = []
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = data()
    with tw.Watch(model, optimizer) as watch:
        with pytest.raises(tw.errors.ArgumentError, match="No average"), watch.averaged():
            pass
        watch.change(ema=0.8)
        for rows in torch.randperm(1024).split(64):
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.step(1.0)
            seen.append(weights(model).double())
        own = weights(model)
        with watch.averaged():
            shares = torch.tensor([0.8 ** (len(seen) - 1 - k) for k in range(len(seen))], dtype=torch.double)
            expected = (shares[:, None] * torch.stack(seen)).sum(0) / shares.sum()
            assert torch.allclose(weights(model).double(), expected, atol=1e-6)
        assert torch.equal(weights(model), own)


def test_the_first_weights_come_back_as_long_as_that_costs_little():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    first, (x, y) = weights(model), data()
    with tw.Watch(model, optimizer, total=100) as watch:
        for number, rows in enumerate(torch.randint(1024, (40, 32))):
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            watch.step(1.0)
            if number == 20:
                watch.begin_again()
                assert torch.equal(weights(model), first)
                assert not optimizer.state
        with pytest.raises(tw.errors.ArgumentError, match="not kept any more"):
            watch.begin_again()


def test_a_decay_that_has_taken_the_weights_down_is_cured_from_the_first_weights():
    model, left = mlp(), mlp()
    found, cured = loop(model, torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1.0), 300, cured=True, total=300)
    assert [each.name for each in found] == ["weight-decay-too-high"]
    assert "watch.begin_again()" in found[0].cure.code
    _, uncured = loop(left, torch.optim.Adam(left.parameters(), 1e-2, weight_decay=1.0), 300)
    assert cured < 0.5 * uncured


def test_batch_statistics_that_a_spoilt_batch_has_made_nan_are_restored():
    model = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))
    optimizer, (x, y) = torch.optim.SGD(model.parameters(), 0.1), data()
    with tw.Watch(model, optimizer) as watch:
        for number, rows in enumerate(torch.randint(1024, (12, 32))):
            given = x[rows].clone()
            if number in (4, 8):
                given[3] = math.nan
            loss = F.cross_entropy(model(given), y[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            for found in watch.step(
                loss, closure=lambda given=given, rows=rows: F.cross_entropy(model(given), y[rows])
            ):
                assert found.name == "bad-data"
                watch.apply(found)
            assert all(value.isfinite().all() for value in model.state_dict().values())


def test_what_is_asked_at_the_sixteenth_step_waits_for_one_that_is_finite():
    def run(spoilt):
        model = mlp()
        with torch.no_grad():
            model[0].bias.fill_(-50.0)
        optimizer, (x, y) = torch.optim.Adam(model.parameters(), 1e-3), data()
        with tw.Watch(model, optimizer) as watch:
            for number, rows in enumerate(torch.randint(1024, (30, 32)), 1):
                given = x[rows] * (math.nan if number in spoilt else 1.0)
                again = lambda given=given, rows=rows: F.cross_entropy(model(given), y[rows])  # noqa: E731
                loss = again()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                for found in watch.step(loss, closure=again):
                    watch.apply(found)
            return [(each.name, each.step) for each in watch.diagnoses if each.name == "dead-units"]

    assert run(()) == [("dead-units", 16)]
    assert run((1, 15, 16, 17)) == [("dead-units", 18)]


def test_after_beginning_again_what_was_seen_before_counts_no_more():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=20.0)
    found, _ = loop(model, optimizer, 200, cured=True, total=400)
    assert [(each.name, each.step) for each in found if each.name == "weight-decay-too-high"][1:] == []
    first, (x, y) = weights(model), data()
    with tw.Watch(model, optimizer, total=400) as watch:
        for rows in torch.randint(1024, (70, 32)):
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.step(1.0)
        watch.begin_again()
        F.cross_entropy(model(x[:32]), y[:32]).backward()
        optimizer.step()
        watch.step(1.0)
        watch.go_back()
        assert torch.equal(weights(model), first)  # not those of step 50, which was undone


def test_an_average_is_of_the_parameters_that_were_there_and_wide_enough_for_sixteen_bits():
    model = nn.Linear(4, 4).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = torch.optim.SGD([model.weight], 0.0)
    with tw.Watch(model, optimizer) as watch:
        watch.change(ema=0.99)
        with watch.averaged():  # before any step: its own
            assert (model.weight == 1).all()
        for number in range(300):
            model.weight.grad = torch.zeros_like(model.weight)
            optimizer.step()
            watch.step(1.0)
            with torch.no_grad():
                model.weight.fill_(1.125 if number else 1.0)
        optimizer.add_param_group({"params": [model.bias]})
        own = model.bias.clone()
        with watch.averaged():
            assert (model.weight > 1.1).all()
            assert torch.equal(model.bias, own)
        assert (model.weight == 1.125).all()
        with pytest.raises(tw.errors.ArgumentError, match=r"`ema` is 1\.0"):
            watch.change(ema=1.0)
        with pytest.raises(tw.errors.ArgumentError, match="`rate_factor` is 0"):
            watch.change(rate_factor=0)
    with watch.averaged():  # a watch that stands aside ends no training
        assert (model.weight == 1.125).all()
