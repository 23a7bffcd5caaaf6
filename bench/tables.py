"""Write the tables of bench/README.md between their markers, from the samples in bench/raw: `python bench/tables.py`.

With --check nothing is written; the exit status is 1 where a table is not what the samples give. Needs no package.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RAW, README = HERE / "raw", HERE / "README.md"
Sample = dict[str, Any]

PEERS = {
    "bare": "bare loop, tensors sliced",
    "ours": "**thalweg, everything on**",
    "loader": "bare loop with `DataLoader`",
    "skorch_net": "skorch",
    "lightning_trainer": "Lightning",
    "transformers_trainer": "Hugging Face `Trainer`",
}
MODELS = {"mlp": "MLP 64-100-32-10", "cnn": "small CNN, 28 x 28", "11m": "MLP of 11.0 M parameters"}


def main() -> int:
    if "--check" in sys.argv[1:]:
        stale = differing()
        for name in stale:
            print(f"bench/README.md: the table '{name}' is not what bench/raw/{name}.json gives; run bench/tables.py")
        return 1 if stale else 0
    write()
    return 0


def measured() -> list[str]:
    """Name the benchmarks that have samples."""
    return sorted(path.stem for path in RAW.glob("*.json"))


def table(name: str) -> str:
    """Give one benchmark's table from its samples."""
    return render(json.loads((RAW / f"{name}.json").read_text("utf-8")))


def render(found: dict[str, Any]) -> str:
    """Give the table of samples, under a line that says where they come from."""
    return "\n".join([*TABLES[found["benchmark"]](found), "", origin(found)])


def write(readme: Path = README) -> None:
    """Put every table between its markers."""
    text = readme.read_text("utf-8")
    for name in measured():
        text = placed(text, name, table(name))
    readme.write_text(text, "utf-8")


def differing(readme: Path = README) -> list[str]:
    """Name the tables that are not what the samples give, or whose samples are gone."""
    text = readme.read_text("utf-8")
    without = [name for name in TABLES if name not in measured() and "|" in between(text, name)]
    return [name for name in measured() if placed(text, name, table(name)) != text] + without


def markers(name: str) -> tuple[str, str]:
    return f"<!-- table: {name} -->", f"<!-- end: {name} -->"


def between(text: str, name: str) -> str:
    start, end = markers(name)
    if text.count(start) != 1 or text.count(end) != 1:
        raise SystemExit(f"bench/README.md needs the markers '{start}' and '{end}' once each")
    return text.split(start)[1].split(end)[0]


def placed(text: str, name: str, new: str) -> str:
    """Give the text with a table put between its markers."""
    between(text, name)
    start, end = markers(name)
    return f"{text.split(start)[0]}{start}\n{new}\n{end}{text.split(end)[1]}"


def origin(found: dict[str, Any]) -> str:
    made = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    told = (
        f"{made['processor']}, {made['cores']} cores, {made['memory_gib']} GiB, {made['system']}; {versions};"
        f" commit {made['commit']}; {found['seconds']} s."
    )
    return f"**Provisional: the machine had other work to do.** {told}" if found["provisional"] else told


# One function a benchmark


def loop(found: dict[str, Any]) -> list[str]:
    lines = list[str]()
    for model in found["settings"]["models"]:
        rows = list[list[str]]()
        there = {s["peer"] for s in found["samples"]}
        for peer in (peer for peer in PEERS if peer in there):
            row = [PEERS[peer]]
            for threads in found["settings"]["threads"]:
                mine, bare = (
                    chosen(found["samples"], model=model, threads=threads, peer=who) for who in (peer, "bare")
                )
                times = [s["microseconds"] for s in mine]
                ratios = [s["microseconds"] / b["microseconds"] for s, b in zip(mine, bare, strict=True)]
                row += [f"{statistics.median(times):,.0f}", spread(ratios)]
            rows.append(row)
        heads = [part for t in found["settings"]["threads"] for part in (f"us a step, {of(t, 'thread')}", "times bare")]
        lines += ["", *grid([MODELS[model], *heads], rows)]
    return [
        f"Batch {found['settings']['batch']}, median (least to most) of {found['settings']['rounds']} rounds.",
        *lines,
    ]


# Parts of tables


def chosen(samples: Sequence[Sample], **wanted: Any) -> list[Sample]:
    """Give the samples with these values."""
    return [s for s in samples if all(s[key] == value for key, value in wanted.items())]


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Give median (least to most)."""
    kept = sorted(values)
    return f"{statistics.median(kept):.{digits}f} ({kept[0]:.{digits}f} to {kept[-1]:.{digits}f})"


def of(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Give a table, the first column to the left and the rest to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {"loop": loop}


if __name__ == "__main__":
    sys.exit(main())
