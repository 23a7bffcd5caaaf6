"""Kernels: an equation compiled with Numba into a loop over memory, kept on disk for the next process.

A kernel is a text of Python, written from the equation's program. Three things are its work and not the equation's:

- Numbers that are one a step are worked out in float64 and only then rounded (`1 - beta2` in float32 is 5e-5 off), and every
  literal has the weights' own type (a plain `1` would turn the sweep into float64, at half the speed).
- Memory comes as addresses: gradients move every step, and making arrays of them would cost more than the sweep.
- Loops hold no lock of Python's, so that threads of Python can share the spans: no OpenMP, which a forked child would not
  survive, and the same bits for any number of threads.
"""

from __future__ import annotations

import ast
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from thalweg.rules import program
from thalweg.rules.rule import Rule

LEADING = ("scale", "clip", "share", "kept")
"""Numbers that stand before the equation's own in a row of the table: the engine's part of a step."""

DECAY = "weight_decay"

FLAGS = {"contract", "arcp", "nsz", "reassoc"}
"""A product may feed a sum, a division become a product, sums run side by side. `nnan` and `ninf`, which would delete every
check for NaN, are never on."""

Kernel = Callable[..., None]

LOOK = """
def kernel(first, last, tensor, start, stop, at_g, limit, sums):
    for b in range(first, last):
        count = stop[b] - start[b]
        p_g = carray(pointer(at_g[tensor[b]] + start[b] * {size}), count)
        total = 0.0
        cut = 0.0
        for i in range(count):
            g = wide(p_g[i])
            total += g * g
            g = min(max(g, -limit), limit)
            cut += g * g
        sums[b, 0] = total
        sums[b, 1] = cut
"""

MOVE = """
def kernel(first, last, tensor, start, stop, rows, table, {addresses}, sums):
    for b in range(first, last):
        t = tensor[b]
        row = rows[t]
        low = start[b] * {size}
        count = stop[b] - start[b]
{arrays}{numbers}{rounded}{zeros}        for i in range(count):
            w = p_w[i]
            g = p_g[i]
{body}{sums}"""


@cache
def look(kind: str) -> Kernel:
    """Give the kernel that sums the squares of gradients, as they are and cut at a limit."""
    return _compiled(LOOK.format(size=_SIZES[kind]), f"look_{kind}", kind)


class Form(NamedTuple):
    """What a kernel does: `purpose` is "move", "sums" (what the rule adds up) or "aligned" (what a cautious step keeps)."""

    kind: str
    purpose: str = "move"
    clips: bool = False
    averages: bool = False
    cautious: bool = False


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
    """Name the numbers that follow `LEADING`: what the equations take, and the decay that the engine itself applies."""
    summed = program.scalars(rule.sums) if rule.sums else ()
    return tuple(dict.fromkeys([DECAY, *rule.takes, *summed, *(["lr"] if rule.takes_decay else []), "floor"]))


def totals(rule: Rule) -> int:
    """Give how many sums of a span a kernel makes, at most."""
    return max(3, len(program.read_sums(rule, rule.constants).results) if rule.sums else 0)


def source(rule: Rule, constants: Mapping[str, Any], form: Form) -> str:
    """Write the text of a rule's kernel."""
    reading = program.read_sums if form.purpose == "sums" else program.read
    writer = _Writer(reading(rule, constants))
    couples = rule.couples(constants)
    masked = form.cautious or form.purpose == "aligned"
    used = {"scale": True, "clip": form.clips, "share": form.averages, DECAY: couples, "kept": form.cautious}
    own = [f"own_{name} = kind({name})" for name, is_used in used.items() if is_used]
    if rule.takes_decay and masked and not couples:
        own.append(f"shrink = kind(lr * {DECAY})")
    if rule.takes_decay and (masked or couples):
        own.append(f"{DECAY} = 0.0")  # the equation is to leave it to what stands around it
    gradient = [
        *(["g = min(max(g, -own_clip), own_clip)"] if form.clips else []),
        "g = g * own_scale",
        *([f"g = g + own_{DECAY} * w"] if couples else []),
    ]
    body, sums = {"move": _moving, "sums": _summing, "aligned": _aligning}[form.purpose](writer, rule, form, couples)
    state = writer.read.state
    arrays = ["w", "g", *state, *(["average"] if form.averages else [])]
    given = [f"{name} = table[row, {i}]" for i, name in enumerate((*LEADING, *numbers(rule)))]
    return MOVE.format(
        size=_SIZES[form.kind],
        addresses=", ".join(f"at_{name}" for name in arrays),
        arrays=_indented([f"p_{name} = carray(pointer(at_{name}[t] + low), count)" for name in arrays], 8),
        numbers=_indented(given, 8),
        rounded=_indented([*own, *writer.once], 8),
        zeros=_indented([f"{name} = kind(0)" for name in sums], 8),
        body=_indented([*gradient, *(f"{name} = p_{name}[i]" for name in state), *body], 12),
        sums=_indented([f"sums[b, {i}] = {name}" for i, name in enumerate(sums)], 8),
    )


Written = tuple[list[str], list[str]]


def _moving(writer: _Writer, rule: Rule, form: Form, couples: bool) -> Written:
    lines, read = writer.lines(), writer.read
    fresh, *state = (writer.write(result) for result in read.results)
    lines.append(f"fresh = {fresh}")
    if form.cautious:
        lines += ["way = fresh - w", "fresh = w + (own_kept * way if way * g < kind(0) else kind(0))"]
        lines += ["fresh = fresh - shrink * w"] if rule.takes_decay and not couples else []
    sums = ["weights", "updates"]
    # All that is new is worked out before any of it takes the old one's name.
    lines += [f"new_{name} = {value}" for name, value in zip(read.state, state, strict=True)]
    if rule.second_moment is not None:
        lines += [f"{name} = new_{name}" for name in read.state]
        writer.once.append("own_floor = kind(floor)")
        second = ast.parse(rule.second_moment, mode="eval").body
        lines += [f"ratios += g * g / max({writer.write(second)}, own_floor)"]
        sums.append("ratios")
    lines += [f"p_{name}[i] = new_{name}" for name in read.state]
    if form.averages:
        lines += ["average = p_average[i]", "p_average[i] = average + own_share * (fresh - average)"]
    lines += ["way = fresh - w", "weights += w * w", "updates += way * way", "p_w[i] = fresh"]
    return lines, sums


def _summing(writer: _Writer, rule: Rule, form: Form, couples: bool) -> Written:
    del rule, form, couples
    lines = writer.lines()
    results = [writer.write(result) for result in writer.read.results]
    sums = [f"total_{i}" for i in range(len(results))]
    return [*lines, *(f"{name} += {value}" for name, value in zip(sums, results, strict=True))], sums


def _aligning(writer: _Writer, rule: Rule, form: Form, couples: bool) -> Written:
    del rule, form, couples
    lines = writer.lines()
    fresh = writer.write(writer.read.results[0])
    return [*lines, f"aligned += kind(1) if ({fresh} - w) * g < kind(0) else kind(0)"], ["aligned"]


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


def _indented(lines: list[str], depth: int) -> str:
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
            self.known[text] = f"once_{len(self.known)}"
            self.once.append(f"{self.known[text]} = kind({text})")
        return self.known[text]


def _compiled(text: str, name: str, kind: str) -> Kernel:
    """Compile a text, or take what an earlier process compiled of it from the disk."""
    import numba

    from thalweg.optim.engines import native

    # Numba finds what it compiled again by module and function name, so each text has a name of its own.
    name = f"{name}_{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
    text = text.replace("def kernel(", f"def {name}(", 1)
    file = _kept(text, name)
    names: dict[str, Any] = {**native.names(kind), "__name__": native.__name__}
    exec(compile(text, str(file or f"<{name}>"), "exec"), names)
    return numba.njit(nogil=True, fastmath=FLAGS, error_model="numpy", cache=file is not None)(names[name])


def _kept(text: str, name: str) -> Path | None:
    """Put a text where Numba keeps what it compiles beside it; None where nothing can be kept.

    What runs is the text at hand, never what lies there.
    """
    folder = cache_folder()
    if folder is None:
        return None
    file = folder / f"{name}.py"
    with suppress(OSError):
        if not file.is_file() or file.read_text("utf-8") != text:
            fresh = file.with_suffix(f".{os.getpid()}.tmp")
            fresh.write_text(text, "utf-8")
            fresh.replace(file)
        return file
    return None


def cache_folder() -> Path | None:
    """Give the folder of kernels in the user's cache, which nobody else can read or write; None where there can be none."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    with suppress(OSError, RuntimeError):
        folder = (Path(base) if base else Path.home() / ".cache") / "thalweg" / "kernels"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        ours = os.name == "nt" or (status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077)
        return folder if ours and os.access(folder, os.W_OK) else None
    return None
