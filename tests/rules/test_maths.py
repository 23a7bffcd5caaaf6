import math

import numpy as np
import pytest
import torch

from thalweg.optim.engines import arithmetic
from thalweg.optim.engines.workspace import WorkspaceTensor, unwrap
from thalweg.rules import maths

NUMBERS = [-2.0, -0.0, 0.0, 0.25, 9.0, math.inf, math.nan]
FUNCTIONS = {
    "sqrt": maths.sqrt,
    "sign": maths.sign,
    "power": lambda x: maths.power(x, 3.0),
    "maximum": lambda x: maths.maximum(x, 0.5),
    "where": lambda x: maths.where(x > 0.5, x, x * 2.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers_arrays_tensors_and_lanes_agree_also_on_nan_and_infinity(name):
    function = FUNCTIONS[name]
    numbers = NUMBERS[:-1] if name == "sign" else NUMBERS
    one_by_one = [float(function(x)) for x in numbers]
    with np.errstate(all="ignore"):
        array = function(np.array(numbers))
        lane = unwrap(function(WorkspaceTensor(torch.tensor(numbers, dtype=torch.float64), [])))
    tensor = function(torch.tensor(numbers, dtype=torch.float64))
    for seen in (array, tensor.numpy(), lane.numpy()):
        np.testing.assert_array_equal(seen, one_by_one)


def test_a_real_power_of_a_negative_number_is_nan():
    assert math.isnan(maths.power(-8.0, 0.5))


def test_maximum_of_two_tensors_is_taken_entry_by_entry():
    x, y = torch.tensor([1.0, 5.0]), torch.tensor([3.0, 2.0])
    assert maths.maximum(x, y).tolist() == [3.0, 5.0]
    assert unwrap(maths.maximum(WorkspaceTensor(x, []), WorkspaceTensor(y, []))).tolist() == [3.0, 5.0]


def test_every_function_knows_tensors_and_arrays():
    for function in (maths.sqrt, maths.sign, maths.power, maths.where, maths.maximum):
        assert function.dispatch(torch.Tensor) is not function.dispatch(object)
        assert function.dispatch(np.ndarray) is not function.dispatch(object)
    assert arithmetic.COMPUTE_DTYPE[torch.bfloat16] is torch.float32


def test_of_whole_tensors_arrays_and_tensors_agree():
    x, y, z = (np.random.default_rng(i).normal(size=(3, 3)) for i in range(3))
    for function in (
        lambda x, y, z: maths.norm(x),
        lambda x, y, z: maths.rms(x),
        lambda x, y, z: maths.lerp(x, y, 0.3),
        lambda x, y, z: maths.gemm(x, y, z, 0.5, 2.0),
        lambda x, y, z: maths.add(x, y, -0.25),
    ):
        tensors = function(*map(torch.from_numpy, (x, y, z)))
        np.testing.assert_allclose(tensors.numpy(), function(x, y, z), rtol=1e-14)
    np.testing.assert_allclose(maths.gemm(x, y, z, 0.5, 2.0), 0.5 * x + 2 * y @ z, rtol=1e-14)


def test_a_norm_is_finite_where_the_squares_overflow():
    assert float(maths.norm(torch.full((4,), 1e30))) == pytest.approx(2e30, rel=1e-6)


def test_rounding_to_half_keeps_eight_bits_and_a_sum_has_the_first_ones_precision():
    rounded = maths.half(torch.tensor([1.0, 1 / 3]))
    assert rounded.tolist() == [1.0, 0.333984375]
    assert maths.add(torch.zeros(2), rounded, 1.0).dtype is torch.float32
    assert maths.half(1 / 3) == 1 / 3
