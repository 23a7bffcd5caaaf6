"""Refinements of a plan, each against the plan as the search makes it: warm-up, a schedule of the decay, beta2, rates by group.

    python bench/tuning/refinements.py STUDY [--workers 2]     # warmup, decay, beta2, …: see STUDIES
    python bench/tuning/refinements.py --write                 # the table, from the stored runs

Each run is a line of `bench/raw/tuning/refinements/STUDY.jsonl`, written when it ends: stop it at any time, it goes on where it
was. All variants of a study are trained from the same seeds on the same tasks. `DEVELOPMENT` decides, `HELD_OUT` is quoted.
"""

from __future__ import annotations

import argparse
import glob
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn

import thalweg as tw
from thalweg import schedule as shapes
from thalweg.descent.gradient import backward, compute_gradient
from thalweg.descent.loop import descend
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.errors import ThalwegError
from thalweg.records.plan import Group, Plan
from thalweg.tuning import priors
from tuning import table
from tuning.lines import append_line, do_all, read_lines, write_table
from tuning.suite import DEVELOPMENT, ENTRIES
from tuning.table import Key, plan_of, problem_of, round_to

RAW = table.RAW / "refinements"
SEEDS = (0, 1, 2)
RULES = ("muon", "adamw")
SMALL = {
    "development": ("short", "raw_columns", "fine_tuning", "noisy_labels", "autoencoder"),
    "held out": ("raw_targets", "tiny", "frozen_trunk", "series", "raw_terrain", "short_text"),
}  # tasks of a second or two a run
LARGER = ("large_batch", "deep_mlp", "plateau")  # of several, all of development: fewer variants
DEAR = (*LARGER, "picture", "short_text", "short_gru", "other_texts")  # made last
WARMUPS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)  # shares of the run
LONG_WARMUPS = (0.1, 0.2, 0.3)  # tried at four times the usual rate too
BY_CURVATURE = ((0.3, 0.2, 0.1), (1.0, 0.2, 0.1), (0.3, 0.1, 0.02))  # times the stable rate, warm-ups above and below
LIKE_ADAM = ("adam", "nadam", "radam", "lion", "schedule_free_adamw", "normuon")  # of which two warm-ups are compared
DECAYS = (
    *(("coupled", share) for share in (0.3, 0.1, 1.0, None)),
    *((shape, share) for shape in ("constant", "log time") for share in (0.3, 0.1)),
)
BETAS = (0.9, 0.95, 0.99, 0.995, 0.999)
BATCHES = (0.25, 1.0, 4.0)  # times the task's own
BATCH_TASKS = {"development": ("short", "raw_columns", "noisy_labels"), "held out": ("raw_targets", "tiny")}
LAYERS = (1.0, 0.85, 0.7, 0.5)  # factor on the rate from one layer to the one before it
PRETRAINED = {
    "development": ("fine_tuning", "other_letters", "faint_digits"),
    "held out": ("turned_trunk", "other_texts"),
}
EMBEDDINGS = (1.0, 3.0, 10.0)  # factor on the embedding's rate
TEXTS = {
    "development": ("next_character", "next_word", "short_gru"),
    "held out": ("next_character_of_source", "next_word_of_source", "short_text"),
}
PRICES = (("adamw", 2.0), ("adamw", 4.0), ("any", 4.0))  # of whole searches, in full trainings
DECAY_PRICES = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Job:
    """What makes a run what it is; `variant` is what the study changes."""

    task: str
    rule: str
    rate: float
    seed: int
    variant: str
    batch: float = 1.0


@cache
def steps_of(task: str, batch: float = 1.0) -> int:
    steps = plan_of(Key(task, 0.01, batch=batch)).steps
    assert steps is not None
    return steps


def rates(task: str, rule: str, factors: Sequence[float]) -> list[float]:
    usual = priors.usual_rate(rule, steps_of(task))
    return [float(f"{usual * factor:.3g}") for factor in factors]


def rated(rate: float, batch: float) -> float:
    """Give the rate at another batch size: by the root of the batch."""
    return float(f"{rate * batch**0.5:.3g}")


def tasks_of(groups: dict[str, tuple[str, ...]]) -> list[str]:
    return [task for tasks in groups.values() for task in tasks]


# The studies: which runs there are, and how a run's descent is made


def warmup_jobs(seed: int) -> Iterator[Job]:
    for task in (*tasks_of(SMALL), *LARGER):
        small = task in SMALL["development"]
        for rule in RULES:
            for factor, rate in zip((1, 2, 4), rates(task, rule, (1, 2, 4)), strict=True):
                if small or factor < 4:
                    shares = LONG_WARMUPS if factor == 4 or task in LARGER else WARMUPS
                    lengths = dict.fromkeys(warmup(task, share) for share in shares)
                    yield from (Job(task, rule, rate, seed, str(length)) for length in lengths)
        if small and task != "short":
            for rule in LIKE_ADAM:
                lengths = [warmup(task, share) for share in (0.1, 0.2)]
                yield from (Job(task, rule, rates(task, rule, (1,))[0], seed, str(length)) for length in lengths)
    for share in (0.1, 0.2):
        yield Job("picture", "adamw", rates("picture", "adamw", (1,))[0], seed, str(warmup("picture", share)))


def warmup(task: str, share: float) -> int:
    """Give a warm-up in steps; a tenth as the table's runs have it."""
    steps = steps_of(task)
    return max(1, int(share * steps)) if share == table.WARMUP else round(share * steps)


def with_warmup(job: Job) -> Descent:
    return Descent(problem_of(job.task), warmed(usual(job), int(job.variant)))


def warmed(plan: Plan, warmup: int) -> Plan:
    return plan.replace(schedule=replace(plan.schedule, warmup=warmup))


def decay_jobs(seed: int) -> Iterator[Job]:
    for task in (*SMALL["development"], "large_batch", *SMALL["held out"][:4]):
        for rule in RULES:
            usual, twice = rates(task, rule, (1, 2))
            yield from (Job(task, rule, usual, seed, f"{shape} {share}") for shape, share in DECAYS)
            yield from (Job(task, rule, twice, seed, f"{shape} 0.3") for shape in ("coupled", "log time"))
        usual, twice = rates(task, "normuon", (1, 2))
        for rate in (usual, twice):
            yield from (Job(task, "normuon", rate, seed, f"{shape} 0.3") for shape in ("coupled", "log time"))


def with_decay(job: Job) -> Descent:
    """Shrink weights over the whole run by the same factor as the coupled decay of that timescale, spread in another way."""
    shape, _, share = job.variant.rpartition(" ")
    plan = usual(job, None if share == "None" else float(share))
    if shape != "coupled":
        assert plan.steps is not None
        plan = plan.replace(weight_decay_schedule={"constant": "constant", "log time": "inverse_time"}[shape])
        plan = plan.replace(weight_decay=plan.weight_decay * priors.decay_start(plan, plan.steps))
    return Descent(problem_of(job.task), plan)


def beta2_jobs(seed: int) -> Iterator[Job]:
    for task in tasks_of(BATCH_TASKS):
        for batch in BATCHES:
            for rate in rates(task, "adamw", (0.5, 1)):
                yield from (Job(task, "adamw", rated(rate, batch), seed, str(beta), batch) for beta in BETAS)


def with_beta2(job: Job) -> Descent:
    return Descent(problem_of(job.task), usual(job).replace(constants={"beta2": float(job.variant)}))


def rest_beta2_jobs(seed: int) -> Iterator[Job]:
    for task in (*tasks_of(SMALL), *LARGER):
        for rate in rates(task, "muon", (1,) if task in LARGER else (1, 2)):
            yield from (Job(task, "muon", rate, seed, str(beta)) for beta in (0.95, 0.99, 0.999))


def with_rest_beta2(job: Job) -> Descent:
    """Give AdamW's beta2 where it moves what Muon leaves out."""
    plan = usual(job)
    model = Descent(problem_of(job.task), plan).model
    vectors = {name: Group(rule="adamw") for name, p in model.named_parameters() if p.requires_grad and p.ndim < 2}
    descent = Descent(problem_of(job.task), plan.replace(groups={**plan.groups, **vectors}))
    for group in descent.optimizer.param_groups:
        if group.get("rule") == "adamw":
            group["betas"] = (0.9, float(job.variant))
    return descent


def layers_jobs(seed: int) -> Iterator[Job]:
    for task in tasks_of(PRETRAINED):
        for rule in RULES:
            for rate in rates(task, rule, (1, 2) if task == "other_texts" else (1, 2, 4)):
                yield from (Job(task, rule, rate, seed, str(factor)) for factor in LAYERS)


def with_layers(job: Job) -> Descent:
    """Give each layer a factor of the next one's rate."""
    plan = usual(job)
    layers = layers_of(Descent(problem_of(job.task), plan).model)
    factors = {
        name: float(job.variant) ** (len(layers) - 1 - depth) for depth, names in enumerate(layers) for name in names
    }
    groups = {
        glob.escape(name): replace(plan.groups.get(name, Group()), learning_rate_factor=factor)
        for name, factor in factors.items()
    }
    return Descent(problem_of(job.task), plan.replace(groups={**plan.groups, **groups}))


def layers_of(model: nn.Module) -> list[list[str]]:
    """Give the names of trainable weights by layer: a part of a sequence, or a module beside it; norms go with what is before.

    >>> layers_of(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1)))
    [['0.weight', '0.bias', '1.weight', '1.bias'], ['3.weight', '3.bias']]
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    units = dict[str, list[str]]()
    for name in named:
        part = re.match(r"(.*?\b\d+)\.", name)
        units.setdefault(part[1] if part else name.rpartition(".")[0] or name, []).append(name)
    layers = list[list[str]]()
    for names in units.values():
        if layers and all(named[name].ndim < 2 for name in names):
            layers[-1] += names
        else:
            layers.append(names)
    return layers


def embeddings_jobs(seed: int) -> Iterator[Job]:
    for task in tasks_of(TEXTS):
        for rule in RULES:
            for rate in rates(task, rule, (1,) if task in ("short_gru", "short_text") else (0.5, 1)):
                yield from (Job(task, rule, rate, seed, str(factor)) for factor in EMBEDDINGS)


def with_embeddings(job: Job) -> Descent:
    problem, plan = problem_of(job.task), usual(job)
    names = [name for name, role in problem.matrix_roles.items() if role == "embedding"]
    groups = dict(plan.groups)
    for name in names:
        rule = groups[name].rule if name in groups else None
        groups[name] = Group(float(job.variant), rule=rule)
    return Descent(problem, plan.replace(groups=groups))


def searches_jobs(seed: int) -> Iterator[Job]:
    """Give whole searches at a price, in the place of the rate, with AdamW alone or also with it."""
    for task in (*SMALL["development"], *SMALL["held out"][:5]):
        for rules, price in PRICES:
            yield from (Job(task, rules, price, seed, str(share)) for share in (0.1, 0.2))


def search(job: Job) -> float:
    """Search and train with another longest warm-up, and give the best validation loss."""
    shipped = priors.MOST_WARMUP
    priors.MOST_WARMUP = float(job.variant)
    try:
        return searched(job)
    finally:
        priors.MOST_WARMUP = shipped


def decay_searches_jobs(seed: int) -> Iterator[Job]:
    """Give whole searches at a price, in the place of the rate, with either schedule of the decay."""
    for task in (*SMALL["development"], *SMALL["held out"][:5]):
        for price in DECAY_PRICES:
            yield from (Job(task, "any", price, seed, shape) for shape in ("coupled", "log time"))


def decay_search(job: Job) -> float:
    """Search and train with a schedule of the decay, and give the best validation loss."""
    return searched(job, **({"weight_decay_schedule": "inverse_time"} if job.variant == "log time" else {}))


def searched(job: Job, **knobs: Any) -> float:
    """Search and train, with knobs that are fixed, and give the best validation loss."""
    entry = ENTRIES[job.task]
    fixed: dict[str, Any] = {"batch_size": entry.batch_size, "threads": 1, **knobs}
    fixed |= {} if job.rule == "any" else {"rule": job.rule}
    run = tw.fit(
        problem_of(job.task).task, epochs=entry.epochs, effort=job.rate, seed=job.seed, fixed=fixed, progress=False
    )
    return run.metrics["loss"]


def usual(job: Job, timescale: float | None = priors.TIMESCALE) -> Plan:
    """Give the plan as the search would set it."""
    return plan_of(Key(job.task, job.rate, seed=job.seed, rule=job.rule, batch=job.batch, timescale=timescale))


def trained(make: Callable[[Job], Descent], job: Job) -> float:
    """Train what a study makes of a job, and give the best validation loss."""
    descent = make(job)
    descend(descent, Recorder())
    return (descent.best_validation or {}).get("value", math.nan)


STUDIES: dict[str, tuple[Callable[[int], Iterator[Job]], Callable[[Job], float]]] = {
    "layers": (layers_jobs, partial(trained, with_layers)),
    "embeddings": (embeddings_jobs, partial(trained, with_embeddings)),
    "rest_beta2": (rest_beta2_jobs, partial(trained, with_rest_beta2)),
    "warmup": (warmup_jobs, partial(trained, with_warmup)),
    "decay": (decay_jobs, partial(trained, with_decay)),
    "beta2": (beta2_jobs, partial(trained, with_beta2)),
    "searches": (searches_jobs, search),
    "decay_searches": (decay_searches_jobs, decay_search),
}


def stable_rate(task: str, rule: str, seed: int) -> float:
    """Give the rate above which a run's first step, taken from its start, would raise its own batch's loss; two gradients.

    It is 2 g'u / u'Hu of the step's direction u, infinite where the loss bends down along it.
    """
    plan = usual(Job(task, rule, priors.usual_rate(rule, steps_of(task)), seed, "")).replace(
        schedule=shapes.constant(), weight_decay=0.0
    )
    descent, rate = Descent(problem_of(task), plan), 0.01 * plan.learning_rate
    try:
        before = [p.detach().clone() for p in descent.parameters]
        compute_gradient(descent, Recorder())
        first = gradients(descent)
        descent.set_rate(rate)
        descent.optimizer.step()
        moved = torch.cat([(a - p.detach()).flatten() for a, p in zip(before, descent.parameters, strict=True)]) / rate
        assert descent.last_draw is not None
        backward(descent, descent.last_draw)
        curvature = float((first - gradients(descent)) @ moved) / rate
        return 2 * float(first @ moved) / curvature if curvature > 0 else math.inf
    finally:
        descent.batches.close()


def gradients(descent: Descent) -> torch.Tensor:
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in descent.parameters]
    )


def measure_stable_rates() -> None:
    """Measure the stable rates of the tasks of the study of warm-ups, and keep them."""
    present = {(line["task"], line["rule"], line["seed"]) for line in read_lines(file_of("stable_rates"))}
    torch.set_num_threads(1)
    for task in (*tasks_of(SMALL), *LARGER):
        for rule in RULES:
            for seed in SEEDS:
                if (task, rule, seed) not in present:
                    line = {"task": task, "rule": rule, "seed": seed, "rate": round_to(stable_rate(task, rule, seed))}
                    append_line(file_of("stable_rates"), line)


def measure(study: str, job: Job) -> dict[str, Any]:
    """Make one run, and give its line: the best validation loss, none where it diverged."""
    started = time.process_time()
    try:
        loss = STUDIES[study][1](job)
    except ThalwegError:
        loss = math.nan
    return {**asdict(job), "loss": round_to(loss), "seconds": round(time.process_time() - started, 3)}


def file_of(study: str) -> Path:
    return RAW / f"{study}.jsonl"


def job_of(line: dict[str, Any]) -> Job:
    return Job(**{name: line[name] for name in Job.__dataclass_fields__})


def work(item: tuple[str, Job]) -> None:
    torch.set_num_threads(1)
    append_line(file_of(item[0]), measure(*item))


# What came of them

WORST = 10.0  # the most that a ratio counts, and that of a run that diverged
Losses = dict[float, dict[str, dict[int, float]]]  # by rate, variant and seed; infinite where a run diverged


Variant = Callable[[str, int, float], str]  # of a task, a seed and a rate


class Row(NamedTuple):
    """A row of the table: `variant` and `usual` are what is compared, under a rule at a batch size."""

    study: str
    name: str
    rule: str
    batch: float
    variant: Variant
    usual: Variant
    price: float | None = None  # of whole searches

    def of(self, task: str) -> tuple[float, float] | None:
        """Give the mean logarithm of the ratio of losses at the usual rate, and of those at the best rate of either.

        None where runs lack.
        """
        found = losses(self.study).get((task, self.rule, self.batch), {})
        by_rate = {
            rate: tuple(
                {seed: by.get(of(task, seed, rate), {}).get(seed) for seed in SEEDS}
                for of in (self.variant, self.usual)
            )
            for rate, by in found.items()
            if self.price in (None, rate)
        }
        whole = {rate: both for rate, both in by_rate.items() if all(None not in one.values() for one in both)}
        middle = self.price or rated(rates(task, self.rule, (1,))[0], self.batch)
        if middle not in whole:
            return None
        best = [min((both[which] for both in whole.values()), key=mean_log) for which in (0, 1)]
        return ratio(*whole[middle]), ratio(*best)


@cache
def losses(study: str) -> dict[tuple[str, str, float], Losses]:
    found: dict[tuple[str, str, float], Losses] = {}
    for line in read_lines(file_of(study)):
        by_rate = found.setdefault((line["task"], line["rule"], line["batch"]), {})
        by_seed = by_rate.setdefault(line["rate"], {}).setdefault(line["variant"], {})
        by_seed[line["seed"]] = math.inf if line["loss"] is None else line["loss"]
    return found


def log(loss: float) -> float:
    return math.log(min(loss, 1e30))


def mean_log(losses: Mapping[int, Any]) -> float:
    return statistics.fmean(map(log, losses.values()))


def ratio(own: Mapping[int, Any], others: Mapping[int, Any]) -> float:
    """Give the mean logarithm of the ratios of losses, seed by seed."""
    most = math.log(WORST)
    return statistics.fmean(min(most, max(-most, log(own[seed]) - log(others[seed]))) for seed in SEEDS)


def rows() -> Iterator[Row]:
    for rule in RULES:
        for share in WARMUPS:
            if share == table.WARMUP:
                continue
            name = f"warm-up of {share:.0%} of the run" if share else "no warm-up"
            yield Row("warmup", name, rule, 1.0, length(share), length(table.WARMUP))
        for above, then, otherwise in BY_CURVATURE:
            name = f"{then:.0%} above {above:g} times the stable rate, else {otherwise:.0%}"
            variant = length_by_curvature(rule, above, then, otherwise)
            yield Row("warmup", name, rule, 1.0, variant, length(table.WARMUP))
    for rule in LIKE_ADAM:
        yield Row("warmup", "warm-up of 20% of the run", rule, 1.0, length(0.2), length(table.WARMUP))
    for rules, price in PRICES:
        yield Row("searches", f"20% of the run, {price:g} U", rules, 1.0, always("0.2"), always("0.1"), price)
    for rule in RULES:
        for shape, share in DECAYS[1:]:
            name = "no decay" if share is None else f"{shape}, forgetting over {share:.0%}"
            yield Row("decay", name, rule, 1.0, always(f"{shape} {share}"), always("coupled 0.3"))
    name = "log time, forgetting over 30%"
    yield Row("decay", name, "normuon", 1.0, always("log time 0.3"), always("coupled 0.3"))
    for price in DECAY_PRICES:
        name = f"log time, {price:g} U"
        yield Row("decay_searches", name, "any", 1.0, always("log time"), always("coupled"), price)
    for batch in BATCHES:
        for beta in BETAS:
            if beta != 0.99:
                name = f"beta2 = {beta}, {batch:g} times the batch"
                yield Row("beta2", name, "adamw", batch, always(str(beta)), always("0.99"))
    for beta in (0.95, 0.99):
        yield Row(
            "rest_beta2", f"beta2 = {beta} of the AdamW beside Muon", "muon", 1.0, always(str(beta)), always("0.999")
        )
    for rule in RULES:
        for factor in LAYERS[1:]:
            yield Row("layers", f"{factor} per layer", rule, 1.0, always(str(factor)), always("1.0"))
    for rule in RULES:
        for factor in EMBEDDINGS[1:]:
            yield Row(
                "embeddings", f"embeddings at {factor:g} times the rate", rule, 1.0, always(str(factor)), always("1.0")
            )


def always(variant: str) -> Variant:
    return lambda task, seed, rate: variant


def length(share: float) -> Variant:
    return lambda task, seed, rate: str(warmup(task, share))


def length_by_curvature(rule: str, above: float, then: float, otherwise: float) -> Variant:
    """Give a warm-up of the share `then` where the rate is more than `above` times the stable one."""

    def variant(task: str, seed: int, rate: float) -> str:
        stable = stable_rates().get((task, rule, seed), math.inf)
        return str(warmup(task, then if rate > above * stable else otherwise))

    return variant


@cache
def stable_rates() -> dict[tuple[str, str, int], float]:
    lines = read_lines(file_of("stable_rates"))
    return {(line["task"], line["rule"], line["seed"]): line["rate"] or math.inf for line in lines}


def sample(row: Row, half: str) -> dict[str, Any] | None:
    """Give a row's figures on one half of the tasks; None where no task has all runs."""
    found = {task: row.of(task) for task in tasks_in(row.study, half)}
    known = {task: both for task, both in found.items() if both is not None}
    if not known:
        return None
    worst = max(known, key=lambda task: known[task][1])
    return {
        "study": row.study,
        "variant": row.name,
        "rule": row.rule,
        "half": half,
        "tasks": len(known),
        "usual": math.exp(statistics.fmean(at_usual for at_usual, _ in known.values())),
        "best": math.exp(statistics.fmean(at_best for _, at_best in known.values())),
        "worst": math.exp(known[worst][1]),
        "task": worst,
        "better": sum(at_best < 0 for _, at_best in known.values()),
    }


def write() -> None:
    made = [found for row in rows() for half in SMALL if (found := sample(row, half))]
    for one in made:
        print(json.dumps(one))
    seconds = sum(line["seconds"] for study in STUDIES for line in read_lines(file_of(study)))
    write_table("refinements", {"seeds": SEEDS}, made, seconds)


def tasks_in(study: str, half: str) -> tuple[str, ...]:
    """Give the tasks of a study in one half."""
    groups = {"beta2": BATCH_TASKS, "layers": PRETRAINED, "embeddings": TEXTS}.get(study, SMALL)
    more = (*LARGER, "picture") if groups is SMALL else ()
    return (*groups[half], *(task for task in more if (task in DEVELOPMENT) == (half == "development")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="*", choices=[*STUDIES, []])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--stable-rates", action="store_true", help="measure the rates up to which first steps are stable"
    )
    parser.add_argument(
        "--write", action="store_true", help="keep the figures in bench/raw/refinements.json, for the README"
    )
    options = parser.parse_args()
    if options.write:
        write()
        return
    if options.stable_rates:
        measure_stable_rates()
        return
    RAW.mkdir(parents=True, exist_ok=True)
    wanted = list[tuple[str, Job]]()
    for seed in SEEDS:
        for study in options.study or STUDIES:
            present = {job_of(line) for line in read_lines(file_of(study))}
            wanted += [(study, job) for job in STUDIES[study][0](seed) if job not in present]
    do_all(work, sorted(wanted, key=lambda item: item[1].task in DEAR), options.workers, every=50)


if __name__ == "__main__":
    main()
