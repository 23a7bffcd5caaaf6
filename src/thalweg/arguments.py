"""Calls that do not fit a function: refused in a sentence that says what it takes, instead of with a TypeError."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from thalweg.errors import ThalwegError

P = ParamSpec("P")
R = TypeVar("R")

SHOWN = 30  # characters of a value that a message repeats


def check_calls(
    function: Callable[P, R],
    what: str,
    error: type[ThalwegError],
    unknown: Callable[[str, list[str]], ThalwegError],
    hints: Mapping[str, str] | None = None,
) -> Callable[P, R]:
    """Give the function, so that a call that does not fit its signature raises an error of ours.

    Arguments:
        function: a function, or an `__init__`.
        what: what it is called in messages.
        error: raised for missing arguments, too many of them, or one that is given twice.
        unknown: makes the error for a name that the function does not know, from that name and those that it knows.
        hints: for an argument that is missing, what is to be given.
    """
    signature = inspect.signature(function)
    own = ["self"] if "self" in signature.parameters else []
    known = [name for name in signature.parameters if name not in own]

    @functools.wraps(function)
    def checked(*arguments: P.args, **named: P.kwargs) -> R:
        for name in named:
            if name not in known:
                raise unknown(name, known)
        try:
            signature.bind(*arguments, **named)
        except TypeError:
            raise error(_misfit(signature, what, arguments[len(own) :], named, hints or {})) from None
        return function(*arguments, **named)

    return checked


def _misfit(
    signature: inspect.Signature, what: str, given: Sequence[Any], named: Mapping[str, Any], hints: Mapping[str, str]
) -> str:
    """Say why arguments with known names do not fit: too many without a name, one given twice, or one missing."""
    parameters = [p for name, p in signature.parameters.items() if name != "self"]
    unnamed = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(given) > len(unnamed):
        rest = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in named]
        if not rest:
            return f"{what} takes {len(unnamed)} arguments at most, and was given {len(given) + len(named)}."
        value = repr(given[len(unnamed)])
        example = f"{rest[0]}={value if len(value) <= SHOWN else '…'}"
        return (
            f"{what} takes {' and '.join(unnamed) or 'nothing'} without a name. Name the rest, such as {example}. It takes"
            f" {', '.join(rest)}."
        )
    twice = [name for name in unnamed[: len(given)] if name in named]
    if twice:
        return f"{what} is given `{twice[0]}` twice, with and without its name. Give it once."
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in named][len(given) :]
    return f"{what} needs `{missing[0]}`.{hints.get(missing[0], '')}"
