import pytest
import torch
from torch import nn

from thalweg.landscape.first_nonfinite import first_nonfinite


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.second(torch.log(-self.first(x).square()))


class AtItsEnd(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x) / 0.0


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Threshold(9.0, torch.nan))), "that of `1.0` (Threshold)"),
        (Functional(), "`second` (Linear) is the first module that is given numbers that are not finite"),
        (AtItsEnd(), "The output of the model (AtItsEnd) is not finite, but all of its modules' are"),
        (nn.Linear(2, 2), "All outputs of the model's modules are finite: look at the loss."),
    ],
)
def test_the_first_module_is_named_and_no_hook_stays(model, sentence):
    assert sentence in first_nonfinite(model, lambda: model(torch.ones(3, 2)))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_call_that_fails_after_it_does_not_hide_it():
    model = nn.Sequential(nn.Threshold(9.0, torch.inf), nn.Linear(3, 1))
    assert "`0` (Threshold)" in first_nonfinite(model, lambda: model(torch.ones(1, 2)))
