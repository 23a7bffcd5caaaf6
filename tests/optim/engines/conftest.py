"""What the tests of engines share."""

import pytest

from thalweg.optim.engines import kernels


@pytest.fixture
def no_kernels(monkeypatch):
    monkeypatch.setattr(kernels, "_loaded", {})
    for function in (kernels._for_switches, kernels.gradient_norms):
        function.cache_clear()
    yield
    for function in (kernels._for_switches, kernels.gradient_norms):
        function.cache_clear()
