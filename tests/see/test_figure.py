"""A run is drawn with matplotlib where that is installed, and says so where it is not."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import thalweg as tw

x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()


def train(**parts):
    task = tw.Task(
        **{"model": lambda: nn.Linear(4, 2), "loss": F.cross_entropy, "data": (x, y), "validation": (x, y), **parts}
    )
    return tw.train(task, tw.Plan(batch_size=20, ema=0.9), steps=20)


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()


@pytest.mark.parametrize(("metrics", "panels"), [({}, 2), ({"accuracy": accuracy}, 3)])
def test_the_curves_are_those_of_the_history(metrics, panels, tmp_path):
    run = train(metrics=metrics)
    figure = run.plot()
    assert len(figure.axes) == panels
    training = figure.axes[0].lines[0]
    assert np.array_equal(training.get_ydata(), run.history["loss"][1:])
    assert [line.get_label() for line in figure.axes[0].lines] == ["training", "validation", "average"]
    assert figure.axes[-1].get_xlabel() == "step"
    figure.savefig(tmp_path / "run.png")
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_without_validation_data_the_evaluated_loss_is_not_called_validation():
    assert train(validation=None).plot().axes[0].lines[1].get_label() == "evaluated"


def test_a_run_without_steps_or_with_figures_that_are_not_finite_is_drawn():
    history = tw.records.run.HistoryColumns(step=np.arange(3.0), loss=np.full(3, np.nan))
    assert tw.Run(tw.Plan(), history).plot().axes
    assert tw.Run(tw.Plan(), tw.records.run.HistoryColumns(step=np.empty(0))).plot().axes


def test_drawing_changes_no_setting_and_opens_no_window():
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    train().plot()
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_without_matplotlib_it_says_what_to_do(monkeypatch):
    run = train()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(tw.RunError, match=r"plot\(\) needs matplotlib: pip install matplotlib\. thalweg\.report"):
        run.plot()
