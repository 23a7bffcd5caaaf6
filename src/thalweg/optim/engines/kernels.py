"""Kernels: a rule's equation compiled with Numba into a loop over memory, and cached on disk for later processes.

The source text of a kernel is generated from the equation as `rules.program` reads it. The kernel adds three things:

- Numbers that depend on the step alone are computed once, in float64, and only then rounded to the weights' dtype (`1 - beta2`
  in float32 is 5e-5 off); literals get that dtype too (a plain `1` would turn the loop into float64, at half the speed).
- It is given addresses: gradients are allocated anew for every step, and to make arrays of them would cost more than the loop.
- The weights are divided into chunks, and each thread takes the next chunk until none is left. Every chunk has sums of its own,
  so that the bits are the same for any number of threads.
"""

from __future__ import annotations

import ast
import ctypes
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from threading import RLock, Thread
from typing import Any, NamedTuple

from thalweg.optim.engines import kernel_cache
from thalweg.rules import program
from thalweg.rules.rule import DECAY, Rule

ENGINE_NUMBERS = ("scale_", "clip_", "ema_weight_", "cautious_scale_", "floor_")
"""The engine's numbers of a step, which come before the equation's in each row of the table of numbers. All names that a kernel
adds end in an underscore, which no name in an equation may."""

FAST_MATH = {"contract", "nsz", "reassoc"}
"""LLVM's fast-math flags: fused multiply-add, zeros without sign, and sums in any order (vectorised). Not `nnan` and `ninf`: they
let the compiler assume that there is no NaN and no infinity, and delete every check for them. Nor `arcp`, reciprocals for
divisions: a division by a root becomes an estimate with a Newton step, which is NaN where the root is infinite, as it is where a
finite gradient's square is not. What all weights are divided by is made a reciprocal here (`_Writer.write`)."""

ERROR_MODEL = "numpy"
"""A division by zero gives infinity or NaN, where Python's raises."""

ARGUMENTS = ("next", "chunks", "tensor", "start", "stop", "sums", "rows", "table")
"""What a kernel is given: an array of int64 with these entries. `next` is the chunk to take next, `chunks` how many there are;
the others are addresses of arrays. Chunk i is the weights `start[i]` to `stop[i]` of the tensor with index `tensor[i]`; `rows`
has for each tensor its row in the table of numbers. After these entries comes one for each operand of the loop (the gradients,
the weights, then state): the address of an array with the addresses of its tensors."""

KERNEL = """
def kernel(address_):
    arguments_ = integers_(address_)
    chunks_ = arguments_[1]
    tensor_ = integers_(arguments_[2])
    start_ = integers_(arguments_[3])
    stop_ = integers_(arguments_[4])
    sums_ = doubles_(arguments_[5])
    rows_ = integers_(arguments_[6])
    table_ = doubles_(arguments_[7])
{arrays}    while True:
        chunk_ = fetch_and_add_one_(address_)
        if chunk_ >= chunks_:
            break
        which_ = tensor_[chunk_]
        row_ = rows_[which_] * {width}
        offset_ = start_[chunk_] * {size}
        count_ = stop_[chunk_] - start_[chunk_]
{pointers}{numbers}{zeros}        for i_ in range(count_):
{body}{sums}"""


class Kernel(NamedTuple):
    """A compiled kernel: `address` of its code; `call(address of its arguments)` runs it, without the interpreter's lock.

    `compiled` is Numba's function, which must live as long as the code is used; None where it was loaded from the cache.
    """

    address: int
    call: Callable[[int], None]
    compiled: Any


class Variant(NamedTuple):
    """Which of a rule's kernels: `dtype` of the weights, what it is for, and what the step does beside the equation.

    `purpose` is "update", "sums" (the rule's sums over all weights) or "aligned" (counts the weights whose update goes against
    their gradient, for a cautious step).
    """

    dtype: str
    purpose: str = "update"
    clips: bool = False
    has_ema: bool = False
    cautious: bool = False


@cache
def gradient_norms(dtype: str, *, clips: bool = False) -> Kernel:
    """Give the kernel that sums the squares of gradients, as they are or clipped by value."""
    clip = ["g = min(max(g, -limit_), limit_)"] if clips else []
    numbers = ["limit_ = table_[row_]"] if clips else []
    text = _text(dtype, ["g"], 1, numbers, {"total_": "0.0"}, ["g = double_(p_g_[i_])", *clip, "total_ += g * g"])
    return _load_or_compile(text, f"norms_{dtype}", dtype)


def prepare(rule: Rule, constants: Mapping[str, Any], variants: Sequence[Variant]) -> None:
    """Load or compile a rule's kernels in another thread; a step that needs one before it is there waits for it."""
    switched_on = tuple(bool(constants[name]) for name in _switches(rule))
    if all((rule, switched_on, variant) in _prepared for variant in variants):
        return
    _prepared.update((rule, switched_on, variant) for variant in variants)
    # The thread ends with its work: an idle one would be a stray to whoever counts threads. It is no daemon, also where a daemon
    # starts it: one that is cut off inside LLVM takes the ending interpreter down with it.
    thread = Thread(target=_prepare, args=(rule, constants, variants), name="thalweg-compiler", daemon=False)
    with suppress(RuntimeError):  # the interpreter is about to end and starts no more threads
        thread.start()


def _prepare(rule: Rule, constants: Mapping[str, Any], variants: Sequence[Variant]) -> None:
    with suppress(Exception):  # the step that needs the kernel will raise the same
        gradient_norms(variants[0].dtype)
        for variant in variants:
            for_rule(rule, constants, variant)


def for_rule(rule: Rule, constants: Mapping[str, Any], variant: Variant) -> Kernel:
    """Give a rule's kernel under these constants; only those that switch something on or off make another kernel."""
    return _for_switches(rule, tuple(bool(constants[name]) for name in _switches(rule)), variant)


@cache
def _for_switches(rule: Rule, switched_on: tuple[bool, ...], variant: Variant) -> Kernel:
    constants = {**rule.constants, **dict(zip(_switches(rule), switched_on, strict=True))}
    return _load_or_compile(source(rule, constants, variant), f"{rule.name}_{variant.dtype}", variant.dtype)


@cache
def _switches(rule: Rule) -> tuple[str, ...]:
    """Name the constants that the equation branches on, that switch state on, or that say whether decay is decoupled."""
    return tuple(dict.fromkeys([*program.switches(rule), *([rule.decoupled] if rule.decoupled else [])]))


@cache
def number_names(rule: Rule) -> tuple[str, ...]:
    """Name the numbers that follow `ENGINE_NUMBERS`: weight decay, whoever applies it, and what the equations take."""
    summed = program.scalars(rule.sums) if rule.sums else ()
    return tuple(dict.fromkeys([DECAY, "lr", *rule.takes, *summed]))


@cache
def num_sums(rule: Rule) -> int:
    """Give how many sums per chunk a kernel of the rule makes, at most."""
    return max(3, num_rule_sums(rule))


@cache
def num_rule_sums(rule: Rule) -> int:
    """Give how many sums over all weights a rule needs before its update."""
    return len(program.read_sums(rule, rule.constants).results) if rule.sums else 0


def source(rule: Rule, constants: Mapping[str, Any], variant: Variant) -> str:
    """Write the source text of a rule's kernel."""
    reading = program.read_sums if variant.purpose == "sums" else program.read
    writer = _Writer(reading(rule, constants))
    couples = rule.couples(constants)
    write_body = {"update": _update_body, "sums": _sums_body, "aligned": _aligned_body}[variant.purpose]
    body, sums = write_body(writer, rule, variant, couples)
    state = writer.read.state
    names = number_names(rule)
    from_table = [f"{name} = dtype_(table_[row_ + {i}])" for i, name in enumerate(ENGINE_NUMBERS)]
    from_table += [f"{name} = table_[row_ + {i}]" for i, name in enumerate(names, len(ENGINE_NUMBERS))]
    return _text(
        variant.dtype,
        ["g", "w", *state, *(["average_"] if variant.has_ema else [])],
        len(from_table),
        [*from_table, *_without_decay(variant, couples), *writer.once_per_step],
        dict.fromkeys(sums, "dtype_(0)"),
        [
            _read_weight(variant),
            "g = p_g_[i_]",
            *_gradient(variant, couples),
            *(f"{s} = p_{s}_[i_]" for s in state),
            *body,
        ],
    )


def _text(
    dtype: str,
    operands: Sequence[str],
    width: int,
    numbers: Sequence[str],
    sums: Mapping[str, str],
    body: Sequence[str],
) -> str:
    """Fill the template with the code for the operands, for the numbers of a step, for the loop's body, and for its sums.

    `width` is the length of a row of the table of numbers; `sums` are names, each with the zero that it starts from.
    """
    names = [name.rstrip("_") for name in operands]
    return KERNEL.format(
        size=_SIZES[dtype],
        width=width,
        arrays=_indented(
            [f"at_{name}_ = integers_(arguments_[{i}])" for i, name in enumerate(names, len(ARGUMENTS))], 4
        ),
        pointers=_indented(
            [f"p_{name}_ = carray_(numbers_(at_{name}_[which_] + offset_), count_)" for name in names], 8
        ),
        numbers=_indented(numbers, 8),
        zeros=_indented([f"{name} = {zero}" for name, zero in sums.items()], 8),
        body=_indented(body, 12),
        sums=_indented([f"sums_[{i} * chunks_ + chunk_] = {name}" for i, name in enumerate(sums)], 8),
    )


def _without_decay(variant: Variant, couples: bool) -> list[str]:
    """Set the equation's weight decay to 0 where the engine applies it: coupled, or decoupled in a cautious step.

    A cautious step masks the update, and decoupled decay is no part of what is masked.
    """
    if couples:
        return [f"coupled_decay_ = dtype_({DECAY})", f"{DECAY} = 0.0"]
    if variant.cautious or variant.purpose == "aligned":
        return [f"decoupled_decay_ = dtype_(lr * {DECAY})", f"{DECAY} = 0.0"]
    return []


def _read_weight(variant: Variant) -> str:
    """Write how a weight is read: in float64 in a cautious step, whose small `new_w_ - w` would lose its bits in float32."""
    return "w = double_(p_w_[i_])" if variant.cautious or variant.purpose == "aligned" else "w = p_w_[i_]"


def _gradient(variant: Variant, couples: bool) -> list[str]:
    """Write what happens to the gradient before the equation sees it."""
    return [
        *(["g = min(max(g, -clip_), clip_)"] if variant.clips else []),
        "g = g * scale_",
        *(["g = g + coupled_decay_ * w"] if couples else []),
    ]


Body = tuple[list[str], list[str]]
"""The lines of a loop's body, and the names of the sums that they add to."""


def _update_body(writer: _Writer, rule: Rule, variant: Variant, couples: bool) -> Body:
    lines, read, sums = writer.lines(), writer.read, ["weights_", "updates_"]
    new_w, *state = (writer.write(result) for result in read.results)
    lines.append(f"new_w_ = {new_w}")
    if variant.cautious:
        lines += [
            "update_ = new_w_ - w",
            "new_w_ = w + (cautious_scale_ * update_ if update_ * g < dtype_(0) else dtype_(0))",
        ]
        lines += [] if couples else ["new_w_ = new_w_ - decoupled_decay_ * w"]
    # All new states are computed before any takes the name of the old one, which the others may read.
    lines += [f"new_{name}_ = {value}" for name, value in zip(read.state, state, strict=True)]
    lines += [f"{name} = p_{name}_[i_] = new_{name}_" for name in read.state]
    if rule.second_moment is not None:
        second = writer.write(ast.parse(rule.second_moment, mode="eval").body)
        lines.append(f"ratios_ += g * g / max({second}, floor_)")
        sums.append("ratios_")
    if variant.has_ema:
        lines += ["average_ = p_average_[i_]", "p_average_[i_] = average_ + ema_weight_ * (new_w_ - average_)"]
    lines += ["update_ = new_w_ - w", "weights_ += w * w", "updates_ += update_ * update_", "p_w_[i_] = new_w_"]
    return lines, sums


def _sums_body(writer: _Writer, rule: Rule, variant: Variant, couples: bool) -> Body:
    del rule, variant, couples
    lines = writer.lines()
    terms = {f"total_{i}_": writer.write(result) for i, result in enumerate(writer.read.results)}
    return [*lines, *(f"{name} += {term}" for name, term in terms.items())], [*terms]


def _aligned_body(writer: _Writer, rule: Rule, variant: Variant, couples: bool) -> Body:
    del rule, variant, couples
    lines, new_w = writer.lines(), writer.write(writer.read.results[0])
    return [*lines, f"aligned_ += dtype_(1) if ({new_w} - w) * g < dtype_(0) else dtype_(0)"], ["aligned_"]


_loaded: dict[str, Kernel] = {}
_prepared: set[tuple[Rule, tuple[bool, ...], Variant]] = set()
_compile_lock = RLock()

if hasattr(os, "register_at_fork"):
    # A fork waits until the compiling thread is between two kernels: the child does not have that thread, and without this it
    # could find Numba half imported, or the lock held for ever.
    os.register_at_fork(
        before=_compile_lock.acquire, after_in_parent=_compile_lock.release, after_in_child=_compile_lock.release
    )


_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_SIZES = {"float32": 4, "float64": 8}
_SIGNS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


def _indented(lines: Sequence[str], depth: int) -> str:
    return "".join(f"{' ' * depth}{line}\n" for line in lines)


class _Writer:
    """Writes expressions as Python text, and moves what has one value per step out of the loop, into `once_per_step`.

    `per_weight` are the names that have one value per weight; `rounded` gives, of the text of an expression that was moved out,
    the name of its value in the weights' dtype.
    """

    def __init__(self, read: program.Program) -> None:
        self.read = read
        self.per_weight = {"w", "g", *read.state}
        self.once_per_step: list[str] = []
        self.rounded: dict[str, str] = {}

    def lines(self) -> list[str]:
        """Write the assignments that have one value per weight."""
        found: list[str] = []
        for line in self.read.lines:
            if line.per_weight:
                found.append(f"{line.name} = {self.write(line.value)}")
                self.per_weight.add(line.name)
            else:
                self.once_per_step.append(f"{line.name} = {ast.unparse(line.value)}")
        return found

    def write(self, node: ast.expr) -> str:
        """Write an expression."""
        if not program.is_per_weight(node, self.per_weight):
            return self._rounded(ast.unparse(node))
        match node:
            case ast.Name(id=name):
                return name
            case ast.BinOp(left=left, op=ast.Div(), right=right) if not program.is_per_weight(right, self.per_weight):
                return f"({self.write(left)} * {self._rounded(ast.unparse(right), reciprocal=True)})"
            case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
                return f"({self.write(left)} {_SIGNS[type(op)]} {self.write(right)})"
            case ast.UnaryOp(operand=operand):
                return f"({'-' if isinstance(node.op, ast.USub) else '+'}{self.write(operand)})"
            case ast.Call(func=ast.Name(id=name), args=values):
                return f"{name}({', '.join(self.write(value) for value in values)})"
            case _:
                raise AssertionError(ast.dump(node))

    def _rounded(self, text: str, *, reciprocal: bool = False) -> str:
        text = f"dtype_(1) / dtype_({text})" if reciprocal else f"dtype_({text})"
        if text not in self.rounded:
            self.rounded[text] = f"rounded_{len(self.rounded)}_"
            self.once_per_step.append(f"{self.rounded[text]} = {text}")
        return self.rounded[text]


def _load_or_compile(text: str, name: str, dtype: str) -> Kernel:
    """Load the kernel that an earlier process compiled from the same text, or compile it."""
    with _compile_lock:
        identity = kernel_cache.identity(text, dtype, ERROR_MODEL, *sorted(FAST_MATH))
        name = f"{name}_{identity[:24]}"
        if name not in _loaded:
            address, compiled = kernel_cache.load(name, identity), None
            if address is None:
                compiled = _compile(text, name, dtype)
                address = compiled.address
                kernel_cache.save(name, identity, *_as_object_file(compiled))
            _loaded[name] = Kernel(address, _FUNCTION(address), compiled)
        return _loaded[name]


def _compile(text: str, name: str, dtype: str) -> Any:
    """Compile a kernel with Numba."""
    from numba import cfunc, types

    from thalweg.optim.engines import intrinsics

    names: dict[str, Any] = {**intrinsics.names(dtype), "__name__": intrinsics.__name__}
    exec(compile(text, f"<{name}>", "exec"), names)
    function = names["kernel"]
    # Numba makes the symbol of this name and of a number that it counts up in each process. Were all called alike, two kernels
    # that two processes compiled could have one symbol, and a third process that links both would call one for the other.
    function.__name__ = function.__qualname__ = name
    return cfunc(types.void(types.intp), fastmath=FAST_MATH, error_model=ERROR_MODEL)(function)


def _as_object_file(compiled: Any) -> tuple[str, bytes, list[str]]:
    """Give the symbol of a compiled kernel, its object file, and the external functions that the code refers to.

    A later process loads the file with LLVM alone, which ends the process at a function that it cannot find, so those that the
    code calls are saved with it. Numba has no list of them: it is read from the LLVM text, where an external function stands in
    a line `declare … @name(` and an external variable in a line `@name = external …`, the name in quotes where it has special
    characters. `llvm.*` are LLVM's intrinsics, which need no linking.
    """
    library = compiled._library
    found = re.findall(
        r"^declare [^@]*@\"?([^\"(]+)\"?\(|^@\"?([^\" ]+)\"? = external", library.get_llvm_str(), re.MULTILINE
    )
    calls = [function or variable for function, variable in found if not function.startswith("llvm.")]
    return compiled._wrapper_name, library.serialize_using_object_code()[2][0], calls
