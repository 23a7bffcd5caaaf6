"""Kernels: an equation compiled with Numba into a loop over memory, kept on disk for the next process.

A kernel is a text of Python, written from the equation's program. Three things are its work and not the equation's:

- Numbers that are one a step are worked out in float64 and only then rounded (`1 - beta2` in float32 is 5e-5 off), and every
  literal has the weights' own type (a plain `1` would turn the sweep into float64, at half the speed).
- Memory comes as addresses: gradients move every step, and making arrays of them would cost more than the sweep.
- Threads share the spans: each takes the next one until none is left, and a span's sums are its own, so that any number of
  threads gives the same bits.
"""

from __future__ import annotations

import ast
import ctypes
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from threading import RLock
from typing import Any, NamedTuple

from thalweg.optim.engines import kernel_cache
from thalweg.rules import program
from thalweg.rules.rule import DECAY, Rule

LEADING = ("scale_", "clip_", "share_", "kept_", "floor_")
"""Numbers that stand before the equation's own in a row of the table: the engine's part of a step. All names of a kernel's own
end in an underscore, which no name of an equation does."""

FLAGS = {"contract", "arcp", "nsz", "reassoc"}
"""A product may feed a sum, a division become a product, sums run side by side. `nnan` and `ninf`, which would delete every
check for NaN, are never on."""

FIELDS = ("next", "spans", "tensor", "start", "stop", "sums", "rows", "table")
"""What a frame holds, each in eight bytes: the span to take next, how many there are, and the addresses of arrays. A span is
weights `start` to `stop` of a tensor; `rows` says which row of the table of numbers is a tensor's. After these come, for each
array that is swept (gradients first, then weights), the address of its tensors' addresses."""

KERNEL = """
def kernel(at_frame_):
    frame_ = integers_(at_frame_)
    spans_ = frame_[1]
    tensor_ = integers_(frame_[2])
    start_ = integers_(frame_[3])
    stop_ = integers_(frame_[4])
    sums_ = wides_(frame_[5])
    rows_ = integers_(frame_[6])
    table_ = wides_(frame_[7])
{arrays}    while True:
        span_ = take_(at_frame_)
        if span_ >= spans_:
            break
        which_ = tensor_[span_]
        row_ = rows_[which_] * {width}
        low_ = start_[span_] * {size}
        count_ = stop_[span_] - start_[span_]
{pointers}{numbers}{zeros}        for i_ in range(count_):
{body}{sums}"""


class Kernel(NamedTuple):
    """A compiled kernel: `call(address of a frame)` runs it, without any lock of Python's.

    `compiled` is what Numba made, None where it came from the disk.
    """

    address: int
    call: Callable[[int], None]
    compiled: Any


class Form(NamedTuple):
    """What a kernel does: `purpose` is "move", "sums" (what the rule adds up) or "aligned" (what a cautious step keeps)."""

    kind: str
    purpose: str = "move"
    clips: bool = False
    averages: bool = False
    cautious: bool = False


@cache
def look(kind: str, *, clips: bool = False) -> Kernel:
    """Give the kernel that sums the squares of gradients, as they are or cut at a limit."""
    cut = ["g = min(max(g, -limit_), limit_)"] if clips else []
    numbers = ["limit_ = table_[row_]"] if clips else []
    text = _text(kind, ["g"], 1, numbers, {"all_": "0.0"}, ["g = wide_(p_g_[i_])", *cut, "all_ += g * g"])
    return _compiled(text, f"look_{kind}", kind)


def prepare(rule: Rule, constants: Mapping[str, Any], forms: Sequence[Form]) -> None:
    """Have a rule's kernels made by another thread; whoever needs one meanwhile waits for it."""
    chosen = tuple(bool(constants[name]) for name in _switches(rule))
    if all((rule, chosen, form) in _prepared for form in forms):
        return
    _prepared.update((rule, chosen, form) for form in forms)
    if not _helper:
        _helper.append(ThreadPoolExecutor(1, "thalweg-compiler"))
    with suppress(RuntimeError):  # where the interpreter is about to end
        _helper[0].submit(_prepare, rule, constants, forms)


def _prepare(rule: Rule, constants: Mapping[str, Any], forms: Sequence[Form]) -> None:
    with suppress(Exception):  # whoever needs the kernel meets the same and says so
        look(forms[0].kind)
        for form in forms:
            of(rule, constants, form)


def of(rule: Rule, constants: Mapping[str, Any], form: Form) -> Kernel:
    """Give a rule's kernel, under the switches that these constants set."""
    return _of(rule, tuple(bool(constants[name]) for name in _switches(rule)), form)


@cache
def _of(rule: Rule, chosen: tuple[bool, ...], form: Form) -> Kernel:
    constants = {**rule.constants, **dict(zip(_switches(rule), chosen, strict=True))}
    return _compiled(source(rule, constants, form), f"{rule.name}_{form.kind}", form.kind)


@cache
def _switches(rule: Rule) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*program.switches(rule), *([rule.decoupled] if rule.decoupled else [])]))


@cache
def numbers(rule: Rule) -> tuple[str, ...]:
    """Name the numbers that follow `LEADING`: weight decay, whoever applies it, and what the equations take."""
    summed = program.scalars(rule.sums) if rule.sums else ()
    return tuple(dict.fromkeys([DECAY, "lr", *rule.takes, *summed]))


@cache
def totals(rule: Rule) -> int:
    """Give how many sums of a span a kernel makes, at most."""
    return max(3, summands(rule))


@cache
def summands(rule: Rule) -> int:
    """Give how many sums over all weights a rule asks for."""
    return len(program.read_sums(rule, rule.constants).results) if rule.sums else 0


def source(rule: Rule, constants: Mapping[str, Any], form: Form) -> str:
    """Write the text of a rule's kernel."""
    reading = program.read_sums if form.purpose == "sums" else program.read
    writer = _Writer(reading(rule, constants))
    couples = rule.couples(constants)
    body, sums = {"move": _moving, "sums": _summing, "aligned": _aligning}[form.purpose](writer, rule, form, couples)
    state = writer.read.state
    names = numbers(rule)
    given = [f"{name} = kind_(table_[row_ + {i}])" for i, name in enumerate(LEADING)]
    given += [f"{name} = table_[row_ + {i}]" for i, name in enumerate(names, len(LEADING))]
    return _text(
        form.kind,
        ["g", "w", *state, *(["average_"] if form.averages else [])],
        len(given),
        [*given, *_decayed(form, couples), *writer.once],
        dict.fromkeys(sums, "kind_(0)"),
        [_weight(form), "g = p_g_[i_]", *_gradient(form, couples), *(f"{s} = p_{s}_[i_]" for s in state), *body],
    )


def _text(
    kind: str, arrays: Sequence[str], width: int, numbers: Sequence[str], sums: Mapping[str, str], body: Sequence[str]
) -> str:
    bare = [name.rstrip("_") for name in arrays]
    return KERNEL.format(
        size=_SIZES[kind],
        width=width,
        arrays=_indented([f"at_{name}_ = integers_(frame_[{i}])" for i, name in enumerate(bare, len(FIELDS))], 4),
        pointers=_indented([f"p_{name}_ = carray_(numbers_(at_{name}_[which_] + low_), count_)" for name in bare], 8),
        numbers=_indented(numbers, 8),
        zeros=_indented([f"{name} = {zero}" for name, zero in sums.items()], 8),
        body=_indented(body, 12),
        sums=_indented([f"sums_[{i} * spans_ + span_] = {name}" for i, name in enumerate(sums)], 8),
    )


def _decayed(form: Form, couples: bool) -> list[str]:
    """Take weight decay from the equation where it goes through the gradient, or past a cautious step's mask."""
    if couples:
        return [f"decay_ = kind_({DECAY})", f"{DECAY} = 0.0"]
    if form.cautious or form.purpose == "aligned":
        return [f"shrink_ = kind_(lr * {DECAY})", f"{DECAY} = 0.0"]
    return []


def _weight(form: Form) -> str:
    """Write how a weight is read: of a cautious step in float64, as a difference of weights loses a small step's bits."""
    return "w = wide_(p_w_[i_])" if form.cautious or form.purpose == "aligned" else "w = p_w_[i_]"


def _gradient(form: Form, couples: bool) -> list[str]:
    """Write what happens to the gradient before the equation sees it."""
    return [
        *(["g = min(max(g, -clip_), clip_)"] if form.clips else []),
        "g = g * scale_",
        *(["g = g + decay_ * w"] if couples else []),
    ]


Written = tuple[list[str], list[str]]


def _moving(writer: _Writer, rule: Rule, form: Form, couples: bool) -> Written:
    lines, read, sums = writer.lines(), writer.read, ["weights_", "updates_"]
    fresh, *state = (writer.write(result) for result in read.results)
    lines.append(f"fresh_ = {fresh}")
    if form.cautious:
        lines += ["way_ = fresh_ - w", "fresh_ = w + (kept_ * way_ if way_ * g < kind_(0) else kind_(0))"]
        lines += [] if couples else ["fresh_ = fresh_ - shrink_ * w"]
    # All that is new is worked out before any of it takes the old one's name.
    lines += [f"new_{name}_ = {value}" for name, value in zip(read.state, state, strict=True)]
    lines += [f"{name} = p_{name}_[i_] = new_{name}_" for name in read.state]
    if rule.second_moment is not None:
        second = writer.write(ast.parse(rule.second_moment, mode="eval").body)
        lines.append(f"ratios_ += g * g / max({second}, floor_)")
        sums.append("ratios_")
    if form.averages:
        lines += ["average_ = p_average_[i_]", "p_average_[i_] = average_ + share_ * (fresh_ - average_)"]
    return [*lines, "way_ = fresh_ - w", "weights_ += w * w", "updates_ += way_ * way_", "p_w_[i_] = fresh_"], sums


def _summing(writer: _Writer, rule: Rule, form: Form, couples: bool) -> Written:
    del rule, form, couples
    lines = writer.lines()
    results = {f"total_{i}_": writer.write(result) for i, result in enumerate(writer.read.results)}
    return [*lines, *(f"{name} += {value}" for name, value in results.items())], [*results]


def _aligning(writer: _Writer, rule: Rule, form: Form, couples: bool) -> Written:
    del rule, form, couples
    lines, fresh = writer.lines(), writer.write(writer.read.results[0])
    return [*lines, f"aligned_ += kind_(1) if ({fresh} - w) * g < kind_(0) else kind_(0)"], ["aligned_"]


_made: dict[str, Kernel] = {}
_prepared: set[tuple[Rule, tuple[bool, ...], Form]] = set()
_helper: list[ThreadPoolExecutor] = []
_compiling = RLock()

if hasattr(os, "register_at_fork"):
    # A child must not find half of Numba imported by a thread that it does not have.
    os.register_at_fork(
        before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=lambda: _start_anew()
    )


def _start_anew() -> None:
    _helper.clear()
    _compiling.release()


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
    """Writes expressions, and takes out of them what is one value a step: `once` are the lines for that."""

    def __init__(self, read: program.Program) -> None:
        self.read = read
        self.each = {"w", "g", *read.state}
        self.once: list[str] = []
        self.known: dict[str, str] = {}

    def lines(self) -> list[str]:
        """Write the assignments that are one value a weight."""
        found: list[str] = []
        for line in self.read.lines:
            if line.each:
                found.append(f"{line.name} = {self.write(line.value)}")
                self.each.add(line.name)
            else:
                self.once.append(f"{line.name} = {ast.unparse(line.value)}")
        return found

    def write(self, node: ast.expr) -> str:
        """Write an expression."""
        if not program.is_each(node, self.each):
            return self._rounded(ast.unparse(node))
        match node:
            case ast.Name(id=name):
                return name
            case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
                return f"({self.write(left)} {_SIGNS[type(op)]} {self.write(right)})"
            case ast.UnaryOp(operand=operand):
                return f"({'-' if isinstance(node.op, ast.USub) else '+'}{self.write(operand)})"
            case ast.Call(func=ast.Name(id=name), args=values):
                return f"{name}({', '.join(self.write(value) for value in values)})"
            case _:
                raise AssertionError(ast.dump(node))

    def _rounded(self, text: str) -> str:
        if text not in self.known:
            self.known[text] = f"once_{len(self.known)}_"
            self.once.append(f"{self.known[text]} = kind_({text})")
        return self.known[text]


def _compiled(text: str, name: str, kind: str) -> Kernel:
    """Take what an earlier process compiled of a text from the disk, or compile it."""
    with _compiling:
        name = f"{name}_{kernel_cache.key(text)}"
        if name not in _made:
            address, kept = kernel_cache.load(name), None
            if address is None:
                address, kept = _compile(text, name, kind)
            _made[name] = Kernel(address, _FUNCTION(address), kept)
        return _made[name]


def _compile(text: str, name: str, kind: str) -> tuple[int, Any]:
    from numba import cfunc, types

    from thalweg.optim.engines import intrinsics

    names: dict[str, Any] = {**intrinsics.names(kind), "__name__": intrinsics.__name__}
    exec(compile(text, f"<{name}>", "exec"), names)
    made: Any = cfunc(types.void(types.intp), fastmath=FLAGS, error_model="numpy")(names["kernel"])
    library = made._library
    calls = re.findall(
        r"^declare [^@]*@\"?([^\"(]+)\"?\(|^@\"?([^\" ]+)\"? = external", library.get_llvm_str(), re.MULTILINE
    )
    names_called = [one or other for one, other in calls if not one.startswith("llvm.")]
    kernel_cache.keep(name, made._wrapper_name, library.serialize_using_object_code()[2][0], names_called)
    return made.address, made
