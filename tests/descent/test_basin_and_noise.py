"""The width of a basin, and what barrier the noise is worth, against closed forms and the chains that noise makes."""

import math

import numpy as np
import pytest
import torch
from small import blobs, classes, plan
from torch import nn

import thalweg as tw
from thalweg.landscape.noise_along import variances_along
from thalweg.records.survey import Basin

DRAW = torch.Generator().manual_seed(0)
PLACES = 2 + torch.randn(400, 1, generator=DRAW)


class Place(nn.Module):
    """One weight, whose loss is half the squared distance to the examples: curvature 1, and noise of the examples' variance."""

    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.tensor([[5.0]]))

    def forward(self, x):
        return self.at.expand(len(x), 1)


def half_square(output, target):
    return (output - target).square().mean() / 2


def task():
    return tw.Task(model=Place, loss=half_square, data=(PLACES, PLACES))


def chain(**knobs):
    given = {"schedule": "constant", "keep": "last", "weight_decay": 0, "clip_norm": None, "watch": False, "holdout": 0}
    return tw.train(task(), tw.Plan(**{"batch_size": 10, "seed": 3, **given, **knobs}))


@pytest.mark.parametrize(
    ("rule", "constants", "gain"), [("gradient_descent", {}, 1.0), ("momentum", {"momentum": 0.9}, 10.0)]
)
def test_the_barrier_is_the_temperature_in_units_of_the_loss(rule, constants, gain):
    rate = 0.05 / gain
    run = chain(rule=rule, constants=constants, learning_rate=rate, steps=2000)
    found = tw.survey(run, slices=False)
    exact = gain * rate * float(PLACES.var()) * (1 / 10 - 1 / 400) / 2
    value, low, high = found.barriers["along the most curved direction"]
    assert low < exact < high
    assert value == pytest.approx(exact, rel=0.5)
    start = float(half_square(torch.tensor(5.0), PLACES))
    assert found.basin.rise == pytest.approx(0.1 * (start - found.loss), rel=0.01)
    # Of a bowl of curvature 1 the loss has risen by r at the distance sqrt(2 r) from its middle.
    end = float(run.model.at.detach())
    away = abs(end - float(PLACES.mean()))
    widths = np.array(found.basin.curved) * abs(end)
    assert widths.sum() / 2 == pytest.approx(math.sqrt(2 * found.basin.rise + away**2), rel=0.05)


def test_the_interval_of_a_variance_holds_it_in_90_of_100():
    class Batches:
        def __init__(self, seed):
            draw = torch.Generator().manual_seed(seed)
            self.gradients = 2 + 3 * torch.randn(32, 4, generator=draw)
            self.parts = range(32)

        def move_to(self, point):
            pass

        def gradients_of_parts(self):
            yield from ((None, 0.0, each) for each in self.gradients)

    direction = torch.tensor([0.6, 0.8, 0.0, 0.0])
    held = [variances_along(Batches(seed), torch.zeros(4), [direction])[0] for seed in range(300)]
    assert 0.85 < np.mean([each.low <= 9 <= each.high for each in held]) < 0.95
    lonely = Batches(0)
    lonely.parts = [1]
    with pytest.raises(ValueError, match="One batch"):
        variances_along(lonely, torch.zeros(4), [direction])


def test_a_cooled_run_says_what_it_was_at_its_highest_rate_too_and_full_batches_have_none():
    run = tw.train(
        classes(data=blobs(320), validation=None, metrics={}), plan(rule="momentum", steps=60, schedule="linear")
    )
    found = tw.survey(run, slices=False)
    end, hottest = (
        found.barriers[f"along the most curved direction{when}"][0] for when in ("", ", at the highest rate")
    )
    rates = run.history["learning_rate"]
    assert hottest / end == pytest.approx(np.nanmax(rates) / rates[-1])
    assert "along the way it came last" in found.barriers
    assert "worth a barrier" in str(found)
    full = tw.train(classes(), plan(rule="momentum", batch_size=96, holdout=0))
    assert not tw.survey(full, slices=False).barriers


def test_of_a_rule_whose_steps_have_a_length_of_their_own_it_is_said_not_to_be_known():
    found = tw.survey(tw.train(classes(), plan(rule="lion", learning_rate=1e-3)), slices=False)
    assert not found.barriers
    assert any("noise of a step is worth is not known" in note for note in found.notes)
    assert len(found.basin.random) == 12
    assert "random directions" in str(found)


def test_adam_has_one_in_its_own_measure_by_what_it_carried_and_by_the_estimate(tmp_path):
    made = plan(steps=80, keep="last", constants={"beta2": 0.98})
    values = [
        tw.survey(tw.train(classes(), made, out=out), slices=False).barriers["along the most curved direction"][0]
        for out in (None, tmp_path / "run")
    ]
    assert values[0] == pytest.approx(values[1], rel=0.3)
    assert 0 < values[0] < 1


def test_a_basin_is_the_same_after_it_was_written(tmp_path):
    basin = Basin(0.5, (0.1, math.inf), ())
    found = tw.Survey(kind="slope", basin=basin, barriers={"a": (1.0, 0.5, 2.0)})
    found.save(tmp_path / "survey.json")
    again = tw.Survey.load(tmp_path / "survey.json")
    assert (again.basin, again.barriers) == (basin, found.barriers)
