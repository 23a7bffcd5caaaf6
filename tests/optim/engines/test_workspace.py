import operator

import pytest
import torch

from thalweg.optim.engines.workspace import WorkspaceTensor, unwrap

OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]
COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge]
X, Y = torch.tensor([0.3, -1.7, 5.0], dtype=torch.float64), torch.tensor([2.0, 0.7, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("op", OPERATORS + COMPARISONS)
def test_a_workspace_tensor_gives_the_bits_of_a_plain_one(op):
    pool = []
    x, y = WorkspaceTensor(X.abs(), pool), WorkspaceTensor(Y, pool)
    for left, right in ((x, y), (x, 0.3)):
        assert torch.equal(unwrap(op(left, right)), op(unwrap(left), unwrap(right)))
    if op in OPERATORS[:4]:
        assert torch.equal(unwrap(op(0.3, x)), op(0.3, X.abs()))
        assert torch.equal(unwrap(op(torch.tensor(0.3, dtype=torch.float64), x)), op(0.3, X.abs()))
    assert torch.equal(unwrap(-x), -X.abs())


def test_buffers_return_to_the_pool_and_are_used_again():
    pool = []
    x = WorkspaceTensor(X, pool)
    for _ in range(10):
        result = (x + 1.0) * (x - 1.0) / (x * x + 1.0)
    assert torch.equal(result.tensor, (X + 1) * (X - 1) / (X * X + 1))
    del result
    assert len(pool) <= 4
    assert all(buffer.data_ptr() != X.data_ptr() for buffer in pool)


def test_a_result_that_is_still_referred_to_is_not_overwritten():
    pool = []
    x = WorkspaceTensor(X, pool)
    kept = x * 2.0
    for _ in range(5):
        x * 3.0
    assert torch.equal(kept.tensor, X * 2)
    assert torch.equal(x.tensor, X)
