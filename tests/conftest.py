"""Tests run two at a time on two cores: one thread each, else they wait for each other."""

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("thalweg", deadline=None)  # cores are shared; time proves nothing
hypothesis.settings.load_profile("thalweg")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
