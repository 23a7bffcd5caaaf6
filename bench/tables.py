"""Write the tables of bench/README.md, and of the project's README.md, between their markers: `python bench/tables.py`.

The figures come from the samples in bench/raw.

With --check nothing is written; the exit status is 1 where a table is not what the samples give. Needs no package.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RAW, README = HERE / "raw", HERE / "README.md"
PROJECT_README = HERE.parent / "README.md"
IN_PROJECT_README = ("loop",)  # tables that the project's README shows too
Sample = dict[str, Any]

PEERS = {
    "bare": "bare loop, tensors sliced",
    "ours": "**thalweg, everything on**",
    "measured": "**thalweg, knobs of speed measured**",
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
MODELS = {
    "mlp": "MLP 64-100-32-10",
    "cnn": "small CNN, 28 x 28",
    "cnn32": "CNN with batch norm, 32 x 32",
    "11m": "MLP of 11.0 M parameters",
}


def main() -> int:
    if "--check" in sys.argv[1:]:
        stale = [("bench/README.md", name) for name in differing()] + [
            ("README.md", name) for name in update_project_readme(check=True)
        ]
        for file, name in stale:
            print(f"{file}: the table '{name}' is not what bench/raw/{name}.json gives; run bench/tables.py")
        return 1 if stale else 0
    write()
    update_project_readme(check=False)
    return 0


def update_project_readme(*, check: bool, readme: Path = PROJECT_README) -> list[str]:
    """Name the tables of the project's README that are not what the samples give, and write them unless `check`."""
    before = text = readme.read_text("utf-8")
    shown = [name for name in IN_PROJECT_README if name in measured()]
    for name in shown:
        text = with_table(text, name, table(name))
    if not check:
        readme.write_text(text, "utf-8")
    return [name for name in shown if between(text, name) != between(before, name)]


def measured() -> list[str]:
    """Name the benchmarks that have samples."""
    return [name for name in TABLES if (RAW / f"{name}.json").exists()]


def table(name: str) -> str:
    """Give one benchmark's table from its samples."""
    return render(json.loads((RAW / f"{name}.json").read_text("utf-8")))


def render(result: dict[str, Any]) -> str:
    """Give the table of a benchmark's result, and under it a line with the machine and the versions."""
    return "\n".join([*TABLES[result["benchmark"]](result), "", origin(result)])


def write(readme: Path = README) -> None:
    """Put every table between its markers."""
    text = readme.read_text("utf-8")
    for name in measured():
        text = with_table(text, name, table(name))
    readme.write_text(text, "utf-8")


def differing(readme: Path = README) -> list[str]:
    """Name the tables that are not what the samples give, or whose samples are gone."""
    text = readme.read_text("utf-8")
    without = [name for name in TABLES if name not in measured() and "|" in between(text, name)]
    return [name for name in measured() if with_table(text, name, table(name)) != text] + without


def markers(name: str) -> tuple[str, str]:
    return f"<!-- table: {name} -->", f"<!-- end: {name} -->"


def between(text: str, name: str) -> str:
    start, end = markers(name)
    if text.count(start) != 1 or text.count(end) != 1:
        raise SystemExit(f"bench/README.md needs the markers '{start}' and '{end}' once each")
    return text.split(start)[1].split(end)[0]


def with_table(text: str, name: str, new: str) -> str:
    """Give the text with a table put between its markers."""
    between(text, name)
    start, end = markers(name)
    return f"{text.split(start)[0]}{start}\n{new}\n{end}{text.split(end)[1]}"


def origin(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    line = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; {versions};"
        f" commit {machine['commit']}; {result['seconds']} s."
    )
    return f"**Provisional: the machine had other work to do.** {line}" if result["provisional"] else line


# One function per benchmark


def loop(result: dict[str, Any]) -> list[str]:
    lines = list[str]()
    for model in result["settings"]["models"]:
        rows = list[list[str]]()
        for peer in result["settings"]["peers"]:
            row = [PEERS[peer]]
            for threads in result["settings"]["threads"]:
                own, bare = (
                    chosen(result["samples"], model=model, threads=threads, peer=who) for who in (peer, "bare")
                )
                times = [s["microseconds"] for s in own]
                ratios = [s["microseconds"] / b["microseconds"] for s, b in zip(own, bare, strict=True)]
                row += [f"{statistics.median(times):,.0f}", spread(ratios, 2)]
            rows.append(row)
        heads = [
            part
            for t in result["settings"]["threads"]
            for part in (f"us per step, {plural(t, 'thread')}", "times bare")
        ]
        lines += ["", *grid([MODELS[model], *heads], rows)]
    return [
        f"Batch {result['settings']['batch']}, median (least to most) of {result['settings']['rounds']} rounds.",
        *lines,
    ]


def speed(result: dict[str, Any]) -> list[str]:
    settings, samples, lines = result["settings"], result["samples"], list[str]()
    for model in settings["models"]:
        rows = list[list[str]]()
        for threads in settings["threads"]:
            bare = chosen(samples, model=model, threads=threads, peer="bare")
            for peer in settings["peers"]:
                own = chosen(samples, model=model, threads=threads, peer=peer)
                ratios = [s["microseconds"] / b["microseconds"] for s, b in zip(own, bare, strict=True)]
                times, losses = ([s[what] for s in own] for what in ("microseconds", "loss"))
                loss = f"{statistics.median(losses):.3f}"
                row = [PEERS[peer], f"{threads}", knobs_in_words(own[0].get("knobs", {}))]
                rows.append([*row, f"{statistics.median(times):,.0f}", spread(ratios, 2), loss])
        lines += ["", *grid([MODELS[model], "threads there", "chosen", "us per step", "times bare", "loss"], rows)]
    caption = (
        f"Batch {settings['batch']}, median (least to most) of {settings['rounds']} rounds, ratios within a round. The loss, of"
        f" training data, is that after the same number of steps from the same rate."
    )
    return [caption, *lines]


def knobs_in_words(knobs: dict[str, Any]) -> str:
    """Name the knobs of speed that are not as a bare loop has them.

    >>> knobs_in_words({"threads": 1, "memory_format": "channels_last", "precision": "float32", "compile": False})
    '1 thread, channels_last'
    """
    usual = ("contiguous", "float32", False, None)
    words = [plural(knobs["threads"], "thread")] if knobs.get("threads") else []
    words += [str(v) for name, v in knobs.items() if name not in ("threads", "compile") and v not in usual]
    return ", ".join([*words, *(["compiled"] if knobs.get("compile") else [])])


def resume(result: dict[str, Any]) -> list[str]:
    samples, settings = result["samples"], result["settings"]
    rows = list[list[str]]()
    for peer in settings["peers"]:
        own = chosen(samples, peer=peer)
        rows.append(
            [
                bold(peer),
                f"{statistics.median(s['bytes'] for s in own) / 1e6:,.1f}",
                spread(1e3 * s["write_seconds"] for s in own),
                spread(1e3 * s["restart_seconds"] for s in own),
            ]
        )
    caption = (
        f"{settings['parameters']:,} parameters under AdamW, {plural(settings['threads'], 'thread')}, median (least to most)"
        f" of {settings['rounds']} rounds."
    )
    return [caption, "", *grid(["", "MB", "ms to write", "ms to the first step"], rows)]


def step(result: dict[str, Any]) -> list[str]:
    settings, lines = result["settings"], list[str]()
    for model in settings["models"]:
        rows = list[list[str]]()
        for peer in settings.get("peers", ("torch", "thalweg")):
            row = [STEPPERS[peer]]
            for threads in settings["threads"]:
                own, theirs = (chosen(result["samples"], model=model, threads=threads, who=w) for w in (peer, "torch"))
                ratios = [a["microseconds"] / b["microseconds"] for a, b in zip(own, theirs, strict=True)]
                row += [f"{statistics.median(s['microseconds'] for s in own):,.0f}", spread(ratios, 2)]
            rows.append(row)
        heads = [p for t in settings["threads"] for p in (f"us per step, {plural(t, 'thread')}", "times PyTorch")]
        lines += ["", *grid([f"{model}: {settings['sizes'][model]:,} weights", *heads], rows)]
    rounds = settings["rounds"]
    caption = f"Median of the steps of a round, then median (least to most) of {rounds} rounds; ratios within a round."
    left_out = "; ".join(f"{STEPPERS[peer]} ({why})" for peer, why in settings.get("left_out", {}).items())
    return [f"{caption} Left out: {left_out}." if left_out else caption, *lines]


def rules(result: dict[str, Any]) -> list[str]:
    settings, samples, lines = result["settings"], result["samples"], list[str]()
    for model, size in settings["sizes"].items():
        rows = list[list[str]]()
        for rule in settings["rules"]:
            own = chosen(samples, rule=rule, weights=size)
            row = [rule if own[0]["engine"] == "cpu" else f"{rule} ({own[0]['engine']})"]
            for full in (False, True):
                row += speed_cells(chosen(own, full=full), settings["threads"])
            rows.append(row)
        heads = [f"{model}: {size:,} weights"]
        for what in ("bytes", "with everything on: bytes"):
            heads += [what, *(p for t in settings["threads"] for p in (f"ns, {plural(t, 'thread')}", "share"))]
        lines += ["", *grid(heads, rows)]
    swept = [
        [
            f"{size:,} weights, torch's threads {how}",
            *speed_cells(chosen(samples, weights=size, sweep=how), settings["threads"]),
        ]
        for size in settings["sizes"].values()
        for how in ("asleep", "spinning")
    ]
    heads = [
        "AdamW's kernel alone",
        "bytes",
        *(p for t in settings["threads"] for p in (f"ns, {plural(t, 'thread')}", "share")),
    ]
    caption = (
        f"Per weight, and the share of the bandwidth at which `a += s * b` goes through memory; medians of"
        f" {settings['rounds']} rounds, the share (least to most)."
    )
    return [caption, *lines, "", *grid(heads, swept)]


def speed_cells(samples: Sequence[Sample], threads: Sequence[int]) -> list[str]:
    """Give bytes per weight, and for each number of threads nanoseconds per weight and share of the bandwidth."""
    parts = [f"{samples[0]['bytes']:.4g}"]
    for count in threads:
        own = chosen(samples, threads=count)
        nanoseconds = statistics.median(s["nanoseconds"] for s in own)
        parts += [
            f"{nanoseconds:,.0f}" if nanoseconds >= 100 else f"{nanoseconds:.3g}",
            spread((s["share"] for s in own), 2),
        ]
    return parts


def cost(result: dict[str, Any]) -> list[str]:
    settings = result["settings"]
    rows = list[list[str]]()
    for model in settings["models"]:
        medians = {
            what: statistics.median(s["value"] for s in chosen(result["samples"], model=model, what=what))
            for what in ("step", "history", "checkpoint", "digest", "snapshot")
        }
        history, checkpoint = medians["history"] / medians["step"], medians["checkpoint"] / 60e6
        digest, snapshot = (medians[what] / settings["every"] / medians["step"] for what in ("digest", "snapshot"))
        rows.append(
            [
                MODELS[model],
                f"{medians['step']:,.0f}",
                f"{medians['history']:.1f} us = {history:.2%}",
                f"{medians['checkpoint'] / 1e3:,.1f} ms = {checkpoint:.2%}",
                f"**{history + checkpoint:.2%}**",
                f"{medians['digest']:,.0f} us = {digest:.2%}",
                f"{medians['snapshot']:,.0f} us = {snapshot:.2%}",
            ]
        )
    heads = ["", "us per step", "history, per step", "checkpoint, per minute", "both", "digest", "snapshot"]
    caption = (
        f"Shares of the run's time, {plural(settings['threads'], 'thread')}, medians of {settings['rounds']} rounds. Digest of"
        f" the weights and snapshot for rollbacks: every {settings['every']} steps, as is the default."
    )
    return [caption, "", *grid(heads, rows)]


def memory(result: dict[str, Any]) -> list[str]:
    settings, rows = result["settings"], list[list[str]]()
    for variant in settings["variants"]:
        own, bare = (chosen(result["samples"], variant=which) for which in (variant, settings["variants"][0]))
        ratios = [s["mib"] / b["mib"] for s, b in zip(own, bare, strict=True)]
        rows.append([bold(variant), spread((s["mib"] for s in own), 0), spread(ratios, 2)])
    caption = (
        f"{MODELS['11m']}, AdamW, batch {settings['batch']}, {settings['steps']} steps, each in a process of its own: the largest"
        f" resident set, less what imports and data had taken; median (least to most) of {settings['rounds']} rounds. One copy of"
        f" the weights is {settings['weights_mib']:.0f} MiB."
    )
    return [caption, "", *grid(["", "MiB", "times bare"], rows)]


def learning(result: dict[str, Any]) -> list[str]:
    settings, rows = result["settings"], list[list[str]]()
    for name in dict.fromkeys(s["example"] for s in result["samples"]):
        own, theirs = (chosen(result["samples"], example=name, who=who) for who in ("thalweg", "adamw"))
        metric = own[0]["metric"]
        ratios = [s["best"]["loss"] / t["best"]["loss"] for s, t in zip(own, theirs, strict=True)]
        rows.append(
            [
                f"{name}, {own[0]['epochs']:g} epochs",
                *(spread((s["best"]["loss"] for s in who), 4) for who in (theirs, own)),
                f"**{spread(ratios, 3)}**",
                *(spread((s["best"][metric] for s in who), 4) for who in (theirs, own)),
                *(f"{statistics.median(s['last']['loss'] for s in who):.4f}" for who in (theirs, own)),
                *(f"{statistics.median(s['seconds'] for s in who):.0f}" for who in (theirs, own)),
            ]
        )
        rows[-1][4] = f"{metric} {rows[-1][4]}"
    heads = ["", "AdamW loss", "thalweg loss", "ratio", "AdamW metric", "thalweg metric", "AdamW last loss"]
    heads += ["thalweg last loss", "AdamW seconds", "thalweg seconds"]
    caption = (
        f"Validation loss and metric of the best validation, the same criterion and as many validations for both; median (least"
        f" to most) of seeds {', '.join(map(str, settings['seeds']))}, ratios within a seed, below 1 where thalweg is better."
    )
    return [caption, "", *grid(heads, rows)]


def holdout(result: dict[str, Any]) -> list[str]:
    settings, samples = result["settings"], result["samples"]
    sets, shares = (list(dict.fromkeys(s[key] for s in samples)) for key in ("set", "share"))
    rows = list[list[str]]()
    for count in dict.fromkeys(s["count"] for s in samples):
        cells = list[str]()
        for share in shares[1:]:
            logs = {name: [math.log(ratio) for ratio in held_over_none(samples, count, share, name)] for name in sets}
            means = {name: math.exp(statistics.fmean(found)) for name, found in logs.items() if found}
            every = [log for found in logs.values() for log in found]
            worst = max(means, key=lambda name: means[name])
            cells += [f"{math.exp(statistics.fmean(every)):.2f}", f"{means[worst]:.2f} ({worst})"]
            cells.append(f"{sum(log > math.log(1.05) for log in every)} of {len(every)}")
        rows.append([f"{count}", *cells])
    heads = ["examples", *(f"{share:g}: {word}" for share in shares[1:] for word in ("mean", "worst set", "worse"))]
    caption = (
        f"Loss on the examples outside of the sample over that with nothing held out (geometric mean; that of the worst data set;"
        f" in how many runs it was more than 5 % worse); {settings['steps']} steps, effort {settings['effort']:g}, seeds"
        f" {', '.join(map(str, settings['seeds']))}; {', '.join(sets)}."
    )
    return [caption, "", *grid(heads, rows)]


def held_over_none(samples: Sequence[Sample], count: int, share: float, name: str) -> list[float]:
    """Give the loss with a share held out over that with none, of each seed."""
    with_none = {s["seed"]: s["loss"] for s in chosen(samples, set=name, count=count, share=0.0)}
    return [s["loss"] / with_none[s["seed"]] for s in chosen(samples, set=name, count=count, share=share)]


def tuning(result: dict[str, Any]) -> list[str]:
    halves = list(dict.fromkeys(s["half"] for s in result["samples"]))
    rows = list[list[str]]()
    for strategy in dict.fromkeys(s["strategy"] for s in result["samples"]):
        found = [chosen(result["samples"], strategy=strategy, half=half)[0] for half in halves]
        cells = [
            cell for s in found for cell in (f"{s['mean']:.2f}", f"{s['worst']:.2f} ({s['task']})", f"{s['price']:.2f}")
        ]
        rows.append([bold(strategy), *cells])
    heads = ["", *(f"{half}: {word}" for half in halves for word in ("mean", "worst", "price"))]
    tasks = [f"{half}: {', '.join(chosen(result['samples'], half=half)[0]['tasks'])}" for half in halves]
    caption = (
        "Best validation loss over that of the best candidate in hindsight (geometric mean over tasks and two seeds;"
        f" mean of the worst task), and price in full trainings, the final one included. {'. '.join(tasks)}."
    )
    return [caption, "", *grid(heads, rows)]


def peers(result: dict[str, Any]) -> list[str]:
    settings = result["settings"]
    rows = [
        [
            bold(s["method"]),
            f"{s['mean']:.2f}",
            f"{s['held_out']:.2f}",
            f"{s['worst']:.2f} ({s['task']})",
            f"{s['worth']:.0f}",
            f"{s['profile']:.2f}",
            " / ".join(f"{share:.0%}" for share in s["matched"]),
            f"{s['units']:.1f}",
            f"{s['seconds']:.1f}",
        ]
        for s in result["samples"]
    ]
    heads = [
        "",
        "over the oracle",
        "held out",
        "worst task",
        "worth, random trials",
        "profile",
        "matched",
        "U",
        "CPU seconds",
    ]
    most = max(s["seeds"] for s in result["samples"])
    ours = f", of some of thalweg's searches of {most}" if most > settings["seeds"] else ""
    caption = (
        f"Best validation loss of what a method ends with, over the oracle of 200 random trials (geometric mean over tasks, mean"
        f" of {settings['seeds']} seeds each{ours}), and its price. Tasks: {', '.join(settings['tasks'])}; held out of them:"
        f" {', '.join(settings['held_out']) or 'none'}. Matched: on how many tasks thalweg at 2 U / at 4 U is within 2 % of the"
        f" method or better."
    )
    return [caption, "", *grid(heads, rows)]


def forecast(result: dict[str, Any]) -> list[str]:
    rows = list[list[str]]()
    for sample in result["samples"]:
        rows.append(
            [
                sample["what"],
                sample["half"],
                f"{sample['share']:.0%}",
                f"{sample['runs']} of {plural(sample['tasks'], 'task')}",
                f"{sample['error']:.1%}",
                f"{sample['naive']:.1%}",
                f"{sample['width']:.1%}",
                f"{sample['one']:.0%}",
                f"{sample['two']:.0%}",
            ]
        )
    heads = ["forecast from", "half", "after", "runs", "median error", "were nothing to change", "stated error"]
    caption = (
        "Error of the loss that was forecast for the planned end, as a share of what came; median of the errors that the"
        " forecasts state; and how often what came lay within one and two of these. Runs that end within"
        f" {result['settings']['near_best']:g} times the best of their task."
    )
    return [caption, "", *grid([*heads, "within one", "within two"], rows)]


def until(result: dict[str, Any]) -> list[str]:
    rows = list[list[str]]()
    for sample in result["samples"]:
        each = [f"{loss:.3f} / {taken:.2f}" for loss, taken in sample["lengths"].values()]
        steps, losses = (sorted(sample[name]) for name in ("steps", "loss"))
        found = f"{statistics.median(losses):.3g}", f"{sample['taken']:.1f}"
        rows.append([sample["task"], sample["half"], ", ".join(f"{n:,}" for n in steps), *found, *each])
    for half in dict.fromkeys(sample["half"] for sample in result["samples"]):
        own = [sample["lengths"] for sample in result["samples"] if sample["half"] == half]
        means = [[statistics.geometric_mean(one[key][part] for one in own) for part in (0, 1)] for key in own[0]]
        rows.append([f"**{half}**", "", "", "", "", *(f"{loss:.3f} / {taken:.2f}" for loss, taken in means)])
    settings = result["settings"]
    lengths = [f"{float(key):g} x" for key in result["samples"][0]["lengths"]]
    caption = (
        f'The length that `epochs="auto"` found on each of {len(settings["seeds"])} seeds, its loss (median), and all steps that'
        f" were taken for it, per step of the run; then, of fits of so many times that length, loss / steps taken as shares of"
        f" those of the found length (geometric means; above 1 the found length is better, or cheaper). Effort"
        f" {settings['effort']:g} in all."
    )
    return [caption, "", *grid(["", "half", "steps", "loss", "taken", *lengths], rows)]


STUDIES = {
    "warmup": "warm-up, against a tenth of the run",
    "searches": "warm-up in whole searches, against a tenth",
    "decay": "weight decay, against one that falls with the rate and forgets over 30%",
    "decay_searches": "weight decay in whole searches, against one that falls with the rate",
    "beta2": "beta2, against 0.99, at the same number of examples",
    "rest_beta2": "beta2 of the AdamW beside Muon, against 0.999",
    "layers": "factor on the rate from layer to layer of a pretrained network, against none",
    "embeddings": "factor on the rate of embeddings, against none",
}


def refinements(result: dict[str, Any]) -> list[str]:
    samples, lines = result["samples"], list[str]()
    for study in dict.fromkeys(s["study"] for s in samples):
        rows = list[list[str]]()
        for variant, rule in dict.fromkeys((s["variant"], s["rule"]) for s in chosen(samples, study=study)):
            row = [variant, rule]
            for half in ("development", "held out"):
                found = chosen(samples, study=study, variant=variant, rule=rule, half=half)
                row += [cell for s in found for cell in refinement_cells(s)] or ["", "", ""]
            rows.append(row)
        heads = [f"{half}: {word}" for half in ("development", "held out") for word in ("usual rate", "best", "worst")]
        lines += ["", *grid([STUDIES[study], "rule", *heads], rows)]
    seeds = ", ".join(map(str, result["settings"]["seeds"]))
    caption = (
        "Best validation loss over that of the plan as the search makes it (geometric mean over tasks and seeds"
        f" {seeds}): both at the usual rate; each at the best of the rates tried; and the worst task of the latter. In brackets"
        " the tasks on which it is lower."
    )
    return [caption, *lines]


def refinement_cells(sample: Sample) -> list[str]:
    better = f"{sample['best']:.3f} ({sample['better']} of {sample['tasks']})"
    return [f"{sample['usual']:.3f}", better, f"{sample['worst']:.2f} ({sample['task']})"]


# Parts of tables


MODES = {
    "train": "`tw.train`",
    "cured": "own loop, cured by `watch.apply`",
    "closure": "own loop, with a closure",
    "bare": "own loop, the loss alone",
}


def watch(result: dict[str, Any]) -> list[str]:
    rows = list[list[str]]()
    for s in result["samples"]:
        false = f"{s['false']} of {s['healthy']}"
        shares = [percentage(s.get(name)) for name in ("named", "planted", "repaired", "mended")]
        steps = "" if s["steps"] is None else f"{s['steps']:g}"
        worse = "" if s["repaired"] is None else str(len(s["worse"]))
        rows.append([s["half"], MODES[s["mode"]], str(s["faulty"]), *shares, steps, false, worse])
    heads = (
        *("half", "how", "faulty", "true cause first", "planted one first", "repaired", "of the mendable"),
        *("steps until named", "false alarms", "healthy made worse"),
    )
    lines = grid(heads, rows)
    held = [s for s in result["samples"] if s["half"] == "held out"]
    for s in held or result["samples"]:
        lines += ["", f"{MODES[s['mode']].capitalize()}, {s['half']}: what is named first, by what was planted.", ""]
        causes = s["causes"].items()
        lines += grid(
            ("planted", "programs", "true cause first", "repaired", "named first"),
            [
                [
                    cause,
                    str(of["faulty"]),
                    percentage(of["named"]),
                    percentage(of["repaired"]),
                    ", ".join(f"{name} {count}" for name, count in of["first"].items()),
                ]
                for cause, of in causes
            ],
        )
    return lines


def watch_cost(result: dict[str, Any]) -> list[str]:
    samples, rows = result["samples"], list[list[str]]()
    rounds = list[str]()
    for model in result["settings"]["models"]:
        of = chosen(samples, model=model)
        rounds.append(f"{len({s['round'] for s in of})} ({MODELS[model]})")
        for what in dict.fromkeys(s["what"] for s in of):
            values, bases = (
                [s["value"] for s in chosen(of, what=each)] for each in (what, f"{what.partition(',')[0]}, off")
            )
            added = statistics.median(value / base for value, base in zip(values, bases, strict=True)) - 1
            firsts, others = (
                [s["first"] for s in chosen(of, what=each)] for each in (what, f"{what.partition(',')[0]}, off")
            )
            once = statistics.median(first - other for first, other in zip(firsts, others, strict=True))
            more = ["", ""] if what.endswith("off") else [f"{added:+.1%}", f"{once:+,.0f}"]
            rows.append([MODELS[model], what, spread(values), *more])
    return [
        f"CPU time on one thread, medians of rounds, {' and '.join(rounds)}: of a step after the first 200, and what these take"
        " more together.",
        "",
        *grid(("model", "loop", "us per step", "more than without", "ms more, once"), rows),
    ]


def percentage(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def chosen(samples: Sequence[Sample], **wanted: Any) -> list[Sample]:
    """Give the samples with these values."""
    return [s for s in samples if all(s.get(key) == value for key, value in wanted.items())]


def spread(values: Iterable[float], digits: int | None = None) -> str:
    """Give median (least to most)."""
    ordered = sorted(values)
    if digits is None:
        digits = 0 if ordered[0] >= 100 else 1 if ordered[0] >= 10 else 2
    return "{:,.{d}f} ({:,.{d}f} to {:,.{d}f})".format(statistics.median(ordered), ordered[0], ordered[-1], d=digits)


def bold(peer: str) -> str:
    return f"**{peer}**" if peer.startswith("thalweg") else peer


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Give a table, the first column to the left and the rest to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


LANDSCAPE = {
    "eigenvalues": "five largest eigenvalues",
    "product": "product, of a gradient",
    "surface": "51 x 51 losses",
    "density": "density",
}


def landscape(result: dict[str, Any]) -> list[str]:
    settings, samples = result["settings"], result["samples"]
    lines = [
        f"CPU time on one thread, medians of {settings['rounds']} rounds; ratios are of two times of one round. Eigenvalues"
        f" to a residual of {settings['tolerance']:g}; of a surface ours measures some points and predicts the others.",
        "",
        "| work | model | thalweg, ms | accuracy | beside it |",
        "| --- | --- | --- | --- | --- |",
    ]
    for work, what in LANDSCAPE.items():
        for model in settings["models"]:
            of = [s for s in samples if s["work"] == work and s["model"] == model]
            ours = {s["round"]: s for s in of if s["who"] == "thalweg"}
            beside = list[str]()
            for who in dict.fromkeys(s["who"] for s in of if s["who"] != "thalweg"):
                theirs = [s for s in of if s["who"] == who]
                ratio = statistics.median(ours[s["round"]]["value"] / s["value"] for s in theirs)
                off = max((s["off"] for s in theirs if "off" in s), default=None)
                kind = "shares off by" if work == "density" else "residual"
                reached = f" ({kind} {off:.1g})" if off is not None else ""
                beside.append(f"{ratio:.2f} of {who}{reached}")
            one = next(iter(ours.values()))
            accuracy = ""
            if work == "eigenvalues":
                accuracy = f"residual {max(s['off'] for s in ours.values()):.1g}"
            if work == "density" and "off" in one:
                accuracy = f"shares off by at most {max(s['off'] for s in ours.values()):.1g}"
            if work == "surface":
                first = statistics.median(s["first"] for s in ours.values())
                theirs = statistics.median(s["value"] for s in of if s["who"] != "thalweg")
                off = f"the others at most {one['off']:.2%} of the range off"
                accuracy = f"{one['measured']:,} measured, {off}; first picture {first / theirs:.1%}"
            value = statistics.median(s["value"] for s in ours.values())
            per = 10 if work == "product" else 1
            lines.append(f"| {what} | {model} | {1000 * value / per:,.1f} | {accuracy} | {', '.join(beside)} |")
    return lines


BASINS = {
    "batch": "sharpness at equal training loss, batches of {of}",
    "schedule": "sharpness at the end, rate {of}",
    "loss": "training loss at the end, over seeds",
    "barrier": "height of the {of} way between two seeds",
}


def basins(result: dict[str, Any]) -> list[str]:
    settings, samples = result["settings"], result["samples"]
    rows = list[list[str]]()
    for what, words in BASINS.items():
        for of in dict.fromkeys(s["of"] for s in samples if s["what"] == what):
            cells = [
                spread(
                    [s["value"] for s in chosen(samples, what=what, of=of, model=model)], 4 if what == "loss" else None
                )
                for model in settings["models"]
            ]
            rows.append([words.format(of=f"{of:,}" if isinstance(of, int) else of), *cells])
    return [
        f"Median (least to most) over {settings['seeds']} seeds, or all pairs of them.",
        "",
        *grid(["", *settings["models"]], rows),
    ]


def fit_survey(result: dict[str, Any]) -> list[str]:
    lines = [
        f"Wall-clock time on one thread, medians of {result['settings']['rounds']} rounds.",
        "",
        "| training | seconds | its survey, ms | share of the training (least to most) | examples | products |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for work in dict.fromkeys(s["work"] for s in result["samples"]):
        of = [s for s in result["samples"] if s["work"] == work]
        shares = [s["value"] / s["training"] for s in of]
        middle = {
            name: statistics.median(s[name] for s in of) for name in ("training", "value", "examples", "products")
        }
        share = f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
        counts = f"{middle['examples']:.0f} | {middle['products']:.0f}" if middle["examples"] else "none: too short |"
        lines.append(f"| {work} | {middle['training']:.2f} | {1000 * middle['value']:.0f} | {share} | {counts} |")
    return lines


TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "loop": loop,
    "speed": speed,
    "step": step,
    "rules": rules,
    "resume": resume,
    "cost": cost,
    "memory": memory,
    "learning": learning,
    "holdout": holdout,
    "tuning": tuning,
    "peers": peers,
    "forecast": forecast,
    "until": until,
    "refinements": refinements,
    "watch": watch,
    "watch_cost": watch_cost,
    "landscape": landscape,
    "basins": basins,
    "fit_survey": fit_survey,
}


if __name__ == "__main__":
    sys.exit(main())
