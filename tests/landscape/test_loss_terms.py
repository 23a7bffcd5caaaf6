"""A loss as named terms: what is descended, and what is no term."""

import pytest
import torch

from thalweg.landscape.loss_terms import MOST_TERMS, is_gradient_due, read_terms

ONE = torch.tensor(1.0)


def test_the_sum_is_descended_with_the_bits_of_the_sum_in_their_order():
    terms = {name: torch.tensor(value) for name, value in (("a", 1e8), ("b", 1.1), ("c", -1e8))}
    assert read_terms(terms).loss.equal(terms["a"] + terms["b"] + terms["c"])
    assert list(read_terms(terms).terms) == ["a", "b", "c"]


def test_the_entry_loss_is_descended_where_there_is_one_and_is_no_term():
    loss, terms = read_terms({"a": ONE, "loss": torch.tensor(7.0), "b": ONE})
    assert float(loss) == 7.0
    assert list(terms) == ["a", "b"]
    assert read_terms({"loss": ONE}) == (ONE, {})


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ({}, "an empty dict"),
        ({"a": ONE, 3: ONE}, "the key 3"),
        ({"": ONE}, "the key ''"),
        ({"a/b": ONE}, "the key 'a/b'"),
        ({"a\0": ONE}, r"the key 'a\\x00'"),
        ({"a": ONE, "kl": 0.5}, r"entry 'kl' is a float, not a tensor.*without \.item\(\)"),
        ({"a": ONE, "kl": None}, "entry 'kl' is None"),
        ({"a": ONE, "kl": torch.ones(3)}, r"entry 'kl' has the shape \(3,\)"),
        ({"a": ONE, "hits": torch.tensor(3)}, r"entry 'hits' is torch\.int64"),
        ({"a": ONE, "wave": torch.tensor(1j)}, r"entry 'wave' is torch\.complex64"),
        ({f"t{k}": ONE for k in range(MOST_TERMS + 1)}, "at most 64"),
    ],
)
def test_what_is_no_term_is_refused_by_its_name(returned, told):
    with pytest.raises(ValueError, match=told):
        read_terms(returned)


@pytest.mark.parametrize(
    ("count", "total", "most"), [(2, 400, 0.06), (3, 1000, 0.06), (2, 10_000, 0.021), (5, None, 0.021)]
)
def test_measuring_gradients_costs_a_bounded_share_of_the_steps(count, total, most):
    steps = total or 10_000
    due = sum(is_gradient_due(step, count, total) for step in range(1, steps + 1))
    assert 1 < due * count <= most * steps + count
    assert not is_gradient_due(1, 0, total)
