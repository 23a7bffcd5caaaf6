import math

import numpy as np
import pytest
import torch

from thalweg.optim.engines import arithmetic
from thalweg.optim.engines.lane import Lane, bare
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
        lane = bare(function(Lane(torch.tensor(numbers, dtype=torch.float64), [])))
    tensor = function(torch.tensor(numbers, dtype=torch.float64))
    for seen in (array, tensor.numpy(), lane.numpy()):
        np.testing.assert_array_equal(seen, one_by_one)


def test_a_real_power_of_a_negative_number_is_nan():
    assert math.isnan(maths.power(-8.0, 0.5))


def test_maximum_of_two_tensors_is_taken_entry_by_entry():
    x, y = torch.tensor([1.0, 5.0]), torch.tensor([3.0, 2.0])
    assert maths.maximum(x, y).tolist() == [3.0, 5.0]
    assert bare(maths.maximum(Lane(x, []), Lane(y, []))).tolist() == [3.0, 5.0]


def test_every_function_knows_tensors_and_arrays():
    for function in (maths.sqrt, maths.sign, maths.power, maths.where, maths.maximum):
        assert function.dispatch(torch.Tensor) is not function.dispatch(object)
        assert function.dispatch(np.ndarray) is not function.dispatch(object)
    assert arithmetic.COMPUTE[torch.bfloat16] is torch.float32
