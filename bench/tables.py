"""Write the tables of bench/README.md, and the first page's, between their markers: `python bench/tables.py`.

The figures come from the samples in bench/raw.

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
FRONT = HERE.parent / "README.md"
IN_FRONT = ("loop",)  # tables that the project's first page shows too
Sample = dict[str, Any]

PEERS = {
    "bare": "bare loop, tensors sliced",
    "ours": "**thalweg, everything on**",
    "loader": "bare loop with `DataLoader`",
    "skorch_net": "skorch",
    "lightning_trainer": "Lightning",
    "transformers_trainer": "Hugging Face `Trainer`",
}
STEPPERS = {
    "torch": "PyTorch, fused AdamW",
    "thalweg": "**thalweg**",
    "optax": "optax, one `jax.jit`",
    "pytorch_optimizer": "pytorch_optimizer, AdamC",
    "heavyball": "heavyball, compiled",
    "deepspeed": "DeepSpeed, CPUAdam",
}
MODELS = {"mlp": "MLP 64-100-32-10", "cnn": "small CNN, 28 x 28", "11m": "MLP of 11.0 M parameters"}


def main() -> int:
    if "--check" in sys.argv[1:]:
        stale = [("bench/README.md", name) for name in differing()] + [
            ("README.md", name) for name in front(check=True)
        ]
        for page, name in stale:
            print(f"{page}: the table '{name}' is not what bench/raw/{name}.json gives; run bench/tables.py")
        return 1 if stale else 0
    write()
    front(check=False)
    return 0


def front(*, check: bool, page: Path = FRONT) -> list[str]:
    """Put the first page's tables between their markers, or only name those that differ."""
    before = text = page.read_text("utf-8")
    shown = [name for name in IN_FRONT if name in measured()]
    for name in shown:
        text = placed(text, name, table(name))
    if not check:
        page.write_text(text, "utf-8")
    return [name for name in shown if between(text, name) != between(before, name)]


def measured() -> list[str]:
    """Name the benchmarks that have samples."""
    return [name for name in TABLES if (RAW / f"{name}.json").exists()]


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
        for peer in found["settings"]["peers"]:
            row = [PEERS[peer]]
            for threads in found["settings"]["threads"]:
                mine, bare = (
                    chosen(found["samples"], model=model, threads=threads, peer=who) for who in (peer, "bare")
                )
                times = [s["microseconds"] for s in mine]
                ratios = [s["microseconds"] / b["microseconds"] for s, b in zip(mine, bare, strict=True)]
                row += [f"{statistics.median(times):,.0f}", spread(ratios, 2)]
            rows.append(row)
        heads = [part for t in found["settings"]["threads"] for part in (f"us a step, {of(t, 'thread')}", "times bare")]
        lines += ["", *grid([MODELS[model], *heads], rows)]
    return [
        f"Batch {found['settings']['batch']}, median (least to most) of {found['settings']['rounds']} rounds.",
        *lines,
    ]


def resume(found: dict[str, Any]) -> list[str]:
    samples, settings = found["samples"], found["settings"]
    rows = list[list[str]]()
    for peer in settings["peers"]:
        mine = chosen(samples, peer=peer)
        rows.append(
            [
                bold(peer),
                f"{statistics.median(s['bytes'] for s in mine) / 1e6:,.1f}",
                spread(1e3 * s["write_seconds"] for s in mine),
                spread(1e3 * s["restart_seconds"] for s in mine),
            ]
        )
    told = (
        f"{settings['parameters']:,} parameters under AdamW, {of(settings['threads'], 'thread')}, median (least to most)"
        f" of {settings['rounds']} rounds."
    )
    return [told, "", *grid(["", "MB", "ms to write", "ms to the first step"], rows)]


def step(found: dict[str, Any]) -> list[str]:
    settings, lines = found["settings"], list[str]()
    for model in settings["models"]:
        rows = list[list[str]]()
        for peer in settings.get("peers", ("torch", "thalweg")):
            row = [STEPPERS[peer]]
            for threads in settings["threads"]:
                mine, theirs = (chosen(found["samples"], model=model, threads=threads, who=w) for w in (peer, "torch"))
                ratios = [a["microseconds"] / b["microseconds"] for a, b in zip(mine, theirs, strict=True)]
                row += [f"{statistics.median(s['microseconds'] for s in mine):,.0f}", spread(ratios, 2)]
            rows.append(row)
        heads = [p for t in settings["threads"] for p in (f"us a step, {of(t, 'thread')}", "times PyTorch")]
        lines += ["", *grid([f"{model}: {settings['sizes'][model]:,} weights", *heads], rows)]
    told = f"Median of the steps of a round, then median (least to most) of {settings['rounds']} rounds; ratios within a round."
    left_out = "; ".join(f"{STEPPERS[peer]} ({why})" for peer, why in settings.get("left_out", {}).items())
    return [f"{told} Left out: {left_out}." if left_out else told, *lines]


def rules(found: dict[str, Any]) -> list[str]:
    settings, samples, lines = found["settings"], found["samples"], list[str]()
    for model, size in settings["sizes"].items():
        rows = list[list[str]]()
        for rule in settings["rules"]:
            mine = chosen(samples, rule=rule, weights=size)
            row = [rule if mine[0]["engine"] == "cpu" else f"{rule} ({mine[0]['engine']})"]
            for full in (False, True):
                row += paced(chosen(mine, full=full), settings["threads"])
            rows.append(row)
        heads = [f"{model}: {size:,} weights"]
        for what in ("bytes", "with everything on: bytes"):
            heads += [what, *(p for t in settings["threads"] for p in (f"ns, {of(t, 'thread')}", "share"))]
        lines += ["", *grid(heads, rows)]
    swept = [
        [
            f"{size:,} weights, torch's threads {how}",
            *paced(chosen(samples, weights=size, sweep=how), settings["threads"]),
        ]
        for size in settings["sizes"].values()
        for how in ("asleep", "spinning")
    ]
    heads = [
        "AdamW's sweep alone",
        "bytes",
        *(p for t in settings["threads"] for p in (f"ns, {of(t, 'thread')}", "share")),
    ]
    told = (
        f"A weight, and the share of the speed at which `a += s * b` goes through memory; medians of {settings['rounds']} rounds,"
        " the share (least to most)."
    )
    return [told, *lines, "", *grid(heads, swept)]


def paced(samples: Sequence[Sample], threads: Sequence[int]) -> list[str]:
    """Give bytes a weight, and for each number of threads nanoseconds and share."""
    parts = [f"{samples[0]['bytes']:.4g}"]
    for count in threads:
        mine = chosen(samples, threads=count)
        nanoseconds = statistics.median(s["nanoseconds"] for s in mine)
        parts += [
            f"{nanoseconds:,.0f}" if nanoseconds >= 100 else f"{nanoseconds:.3g}",
            spread((s["share"] for s in mine), 2),
        ]
    return parts


def cost(found: dict[str, Any]) -> list[str]:
    settings = found["settings"]
    rows = list[list[str]]()
    for model in settings["models"]:
        at = {
            what: statistics.median(s["value"] for s in chosen(found["samples"], model=model, what=what))
            for what in ("step", "history", "checkpoint", "digest", "snapshot")
        }
        history, checkpoint = at["history"] / at["step"], at["checkpoint"] / 60e6
        digest, snapshot = (at[what] / settings["every"] / at["step"] for what in ("digest", "snapshot"))
        rows.append(
            [
                MODELS[model],
                f"{at['step']:,.0f}",
                f"{at['history']:.1f} us = {history:.2%}",
                f"{at['checkpoint'] / 1e3:,.1f} ms = {checkpoint:.2%}",
                f"**{history + checkpoint:.2%}**",
                f"{at['digest']:,.0f} us = {digest:.2%}",
                f"{at['snapshot']:,.0f} us = {snapshot:.2%}",
            ]
        )
    heads = ["", "us a step", "history, a step", "checkpoint, a minute", "both", "digest", "snapshot"]
    told = (
        f"Shares of the run's time, {of(settings['threads'], 'thread')}, medians of {settings['rounds']} rounds. Digest of the"
        f" weights and snapshot to go back to: each {settings['every']} steps, as is the default."
    )
    return [told, "", *grid(heads, rows)]


def memory(found: dict[str, Any]) -> list[str]:
    settings, rows = found["settings"], list[list[str]]()
    for variant in settings["variants"]:
        mine, bare = (chosen(found["samples"], variant=which) for which in (variant, settings["variants"][0]))
        ratios = [s["mib"] / b["mib"] for s, b in zip(mine, bare, strict=True)]
        rows.append([bold(variant), spread((s["mib"] for s in mine), 0), spread(ratios, 2)])
    told = (
        f"{MODELS['11m']}, AdamW, batch {settings['batch']}, {settings['steps']} steps, a process each: the most that was"
        f" resident beyond what imports and data had taken; median (least to most) of {settings['rounds']} rounds. One copy of"
        f" the weights is {settings['weights_mib']:.0f} MiB."
    )
    return [told, "", *grid(["", "MiB", "times bare"], rows)]


def learning(found: dict[str, Any]) -> list[str]:
    settings, rows = found["settings"], list[list[str]]()
    for name in dict.fromkeys(s["example"] for s in found["samples"]):
        mine, theirs = (chosen(found["samples"], example=name, who=who) for who in ("thalweg", "adamw"))
        metric = mine[0]["metric"]
        ratios = [s["best"]["loss"] / t["best"]["loss"] for s, t in zip(mine, theirs, strict=True)]
        rows.append(
            [
                f"{name}, {mine[0]['epochs']:g} epochs",
                *(spread((s["best"]["loss"] for s in who), 4) for who in (theirs, mine)),
                f"**{spread(ratios, 3)}**",
                *(spread((s["best"][metric] for s in who), 4) for who in (theirs, mine)),
                *(f"{statistics.median(s['last']['loss'] for s in who):.4f}" for who in (theirs, mine)),
                *(f"{statistics.median(s['seconds'] for s in who):.0f}" for who in (theirs, mine)),
            ]
        )
        rows[-1][4] = f"{metric} {rows[-1][4]}"
    heads = ["", "AdamW loss", "thalweg loss", "ratio", "AdamW metric", "thalweg metric", "AdamW last loss"]
    heads += ["thalweg last loss", "AdamW seconds", "thalweg seconds"]
    told = (
        f"Validation loss and metric of the best validation, the same rule and the same places for both; median (least to most)"
        f" of seeds {', '.join(map(str, settings['seeds']))}, ratios within a seed, below 1 where thalweg is better."
    )
    return [told, "", *grid(heads, rows)]


# Parts of tables


def chosen(samples: Sequence[Sample], **wanted: Any) -> list[Sample]:
    """Give the samples with these values."""
    return [s for s in samples if all(s.get(key) == value for key, value in wanted.items())]


def spread(values: Iterable[float], digits: int | None = None) -> str:
    """Give median (least to most)."""
    kept = sorted(values)
    if digits is None:
        digits = 0 if kept[0] >= 100 else 1 if kept[0] >= 10 else 2
    return "{:,.{d}f} ({:,.{d}f} to {:,.{d}f})".format(statistics.median(kept), kept[0], kept[-1], d=digits)


def bold(peer: str) -> str:
    return f"**{peer}**" if peer.startswith("thalweg") else peer


def of(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Give a table, the first column to the left and the rest to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "loop": loop,
    "step": step,
    "rules": rules,
    "resume": resume,
    "cost": cost,
    "memory": memory,
    "learning": learning,
}


if __name__ == "__main__":
    sys.exit(main())
