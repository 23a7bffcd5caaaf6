"""Functions that take the target before the output, as scikit-learn's and Keras's do, where they are called the other way."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from thalweg.sampling.sources import tree_map

_TARGETS = {
    *("target", "targets", "label", "labels", "true", "truth", "actual", "expected", "reference", "references", "gt"),
    *("y_true", "y_test", "ytrue", "ground_truth", "true_labels"),
}
_OUTPUTS = {
    *(
        "output",
        "outputs",
        "out",
        "pred",
        "preds",
        "prediction",
        "predictions",
        "predicted",
        "logits",
        "score",
        "scores",
    ),
    *("y_pred", "y_score", "y_scores", "y_prob", "y_proba", "y_hat", "yhat", "ypred", "probas", "input", "inputs"),
}


def target_first(call: Any) -> str:
    """Give the names of a function's arguments where they say that the target comes first; else an empty text.

    >>> target_first(lambda y_true, y_pred: 0), target_first(lambda output, target: 0)
    ('y_true, y_pred', '')
    """
    if isinstance(call, nn.Module):
        call = call.forward
    elif callable(getattr(call, "update", None)):
        call = call.update
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return ""
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:2]
    return ", ".join(names) if len(names) == 2 and names[0] in _TARGETS and names[1] in _OUTPUTS else ""


def order_advice(call: Any, name: str) -> str:
    """Say how to give a function that takes the target first; "" where its arguments' names do not say so."""
    names = target_first(call)
    if not names:
        return ""
    if callable(getattr(call, "update", None)):
        return f"Its update takes ({names}), but is called with (outputs, targets): exchange the two."
    inner = getattr(call, "__name__", "")
    inner = inner if inner.isidentifier() else name
    return (
        f"It takes ({names}), but is called with (output, target): give lambda output, target: {inner}(target, output)."
    )


def is_mistaken(call: Any, figure: Callable[[Any, Any], Any], output: Any, target: Any) -> bool:
    """Tell whether a function that takes the target first gives another figure for (target, output) than for (output, target).

    One to which the order is all the same, as it is to a squared error, is right either way; and one that fails with the target
    first means something else by its names.
    """
    if not target_first(call):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one, other = float(figure(output, target)), float(figure(tree_map(_own, target), tree_map(_own, output)))
    except Exception:
        return False
    return not math.isclose(one, other, rel_tol=1e-4) and not (math.isnan(one) and math.isnan(other))


def _own(leaf: Any) -> Any:
    return leaf.detach().clone() if hasattr(leaf, "detach") else leaf
