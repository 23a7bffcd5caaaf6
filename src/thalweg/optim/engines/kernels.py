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
from typing import Any

from thalweg.rules import program
from thalweg.rules.rule import Rule

LEADING = ("scale", "clip", "share")
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
{arrays}{numbers}{rounded}        weights = kind(0)
        updates = kind(0)
        for i in range(count):
            w = p_w[i]
            g = p_g[i]
{gradient}{read}{lines}            fresh = {fresh}
{write}            way = fresh - w
            weights += w * w
            updates += way * way
            p_w[i] = fresh
        sums[b, 0] = weights
        sums[b, 1] = updates
"""


@cache
def look(kind: str) -> Kernel:
    """Give the kernel that sums the squares of gradients, as they are and cut at a limit."""
    return _compiled(LOOK.format(size=_SIZES[kind]), f"look_{kind}", kind)


def move(rule: Rule, constants: Mapping[str, Any], kind: str, *, clips: bool, averages: bool) -> Kernel:
    """Give the kernel that takes a rule's step, under the switches that these constants set."""
    chosen = tuple(bool(constants[name]) for name in program.switches(rule))
    return _move(rule, chosen, kind, clips, averages)


@cache
def _move(rule: Rule, chosen: tuple[bool, ...], kind: str, clips: bool, averages: bool) -> Kernel:
    constants = {**rule.constants, **dict(zip(program.switches(rule), chosen, strict=True))}
    text = source(rule, constants, kind, clips=clips, averages=averages)
    return _compiled(text, f"{rule.name}_{kind}", kind)


def numbers(rule: Rule) -> tuple[str, ...]:
    """Name the numbers that follow `LEADING`: what the equation takes, and the decay that the engine itself applies."""
    own = program.scalars(rule)
    return own if DECAY in own else (DECAY, *own)


def source(rule: Rule, constants: Mapping[str, Any], kind: str, *, clips: bool, averages: bool) -> str:
    """Write the text of the kernel that takes a rule's step."""
    read = program.read(rule, constants)
    writer = _Writer(read)
    lines = writer.lines()
    fresh, *state = (writer.write(result) for result in read.results)
    own = {"scale": True, "clip": clips, "share": averages, DECAY: rule.coupled_decay}
    gradient = [
        *(["g = min(max(g, -own_clip), own_clip)"] if clips else []),
        "g = g * own_scale",
        *([f"g = g + own_{DECAY} * w"] if rule.coupled_decay else []),
    ]
    write = [f"p_{name}[i] = {value}" for name, value in zip(read.state, state, strict=True)]
    if averages:
        write += ["average = p_average[i]", "p_average[i] = average + own_share * (fresh - average)"]
    arrays = ["w", "g", *read.state, *(["average"] if averages else [])]
    given = [f"{name} = table[row, {i}]" for i, name in enumerate((*LEADING, *numbers(rule)))]
    return MOVE.format(
        size=_SIZES[kind],
        addresses=", ".join(f"at_{name}" for name in arrays),
        arrays=_indented([f"p_{name} = carray(pointer(at_{name}[t] + low), count)" for name in arrays], 8),
        numbers=_indented(given, 8),
        rounded=_indented([*(f"own_{name} = kind({name})" for name, used in own.items() if used), *writer.once], 8),
        gradient=_indented(gradient, 12),
        read=_indented([f"{name} = p_{name}[i]" for name in read.state], 12),
        lines=_indented(lines, 12),
        fresh=fresh,
        write=_indented(write, 12),
    )


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
