"""A loss that is made of named terms, such as {"reconstruction": …, "kl": …}.

What is descended is their sum; or the entry `loss` where there is one, and then the others are only followed.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from thalweg.formatting import is_storable

TOTAL = "loss"  # the entry that is descended
MOST_TERMS = 64  # of one run
COSTS = (20, 50)  # steps between measurements of the terms' gradients, for each term, in a short run and in a long one
SHORT = 1000  # steps


class LossTerms(NamedTuple):
    """What is descended, and its terms by name, without the entry `loss`."""

    loss: Tensor
    terms: Mapping[str, Tensor]


def read_terms(returned: Mapping[Any, Any]) -> LossTerms:
    """Read a loss that was given as named terms.

    >>> import torch
    >>> read_terms({"reconstruction": torch.tensor(2.0), "kl": torch.tensor(0.5)}).loss
    tensor(2.5000)

    Raises ValueError, which names the term and says what to give instead, for an empty table, too many terms, a name that is
    none, and a term that is no tensor of one real floating-point number.
    """
    if not returned:
        raise ValueError("an empty dict, which has no loss in it. Return the terms by name, {'kl': kl}, or the loss.")
    if len(returned) > MOST_TERMS:
        raise ValueError(f"a dict of {len(returned)} entries; a loss has at most {MOST_TERMS} terms. Return their sum.")
    for name, value in returned.items():
        _check_name(name)
        _check_term(name, value)
    terms: dict[str, Tensor] = {name: value for name, value in returned.items() if name != TOTAL}
    loss = returned[TOTAL] if TOTAL in returned else functools.reduce(operator.add, terms.values())
    return LossTerms(loss, terms)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name or "/" in name or not is_storable(name):
        raise ValueError(
            f"a dict with the key {name!r:.60}. The terms of a loss have names: texts that are not empty, without '/', which"
            f" separates columns."
        )


def _check_term(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        what = "None" if value is None else f"a {type(value).__name__}"
        raise ValueError(
            f"a dict whose entry '{name}' is {what}, not a tensor. Return the tensor itself, without .item(), torch.zeros(()) for"
            f" a term that is off, and leave out what is no term of the loss."
        )
    if value.numel() != 1:
        raise ValueError(
            f"a dict whose entry '{name}' has the shape {tuple(value.shape)}; a term of the loss is one number: the mean over the"
            f" batch. Call .mean(), or leave it out where it is no term."
        )
    if not value.is_floating_point():
        raise ValueError(
            f"a dict whose entry '{name}' is {value.dtype}; a term of the loss is a real floating-point number. Leave out what is"
            f" no term."
        )


def without_gradient(terms: Mapping[str, Tensor]) -> list[str]:
    """Give the names of terms that nothing that is trained leads to."""
    return [name for name, value in terms.items() if not value.requires_grad]


def is_gradient_due(step: int, count: int, total: int | None = None) -> bool:
    """Tell whether the gradients of so many terms are measured at a step, by its number from 1.

    A term's costs about as much as a step: so all cost at most 5 % of a run of up to 1,000 steps, and 2 % of a longer one.

    >>> [step for step in range(1, 250) if is_gradient_due(step, 2, 5000)]
    [1, 100, 200]
    """
    every = COSTS[total is None or total > SHORT]
    return count > 0 and (step == 1 or step % (every * count) == 0)
