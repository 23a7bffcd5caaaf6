"""Precision: bfloat16 where it is faster, and pairs of short runs show no loss beyond chance.

The runs of a pair have the same seed and batches. They are finished runs, whose rate falls to zero: what rounding does shows at
the end, where steps are small.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

import torch

from thalweg.descent.loop import descend
from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.descent.timing import TimedDescent
from thalweg.errors import ThalwegError, error_text
from thalweg.landscape.loss_calls import LossCalls
from thalweg.records.plan import Plan
from thalweg.tuning import memory_format, priors
from thalweg.tuning.comparison import PAYS as PAYS_BESIDE
from thalweg.tuning.comparison import Compared, Finding, Trial, compare, evaluated

VALUES = ("float32", "bfloat16")
PAYS = 0.85  # of a step's time in float32; for less, nobody would round
FEWEST = 40  # steps of a paired run: in fewer the loss has hardly fallen
PAIRS = 2
LEARNT = 0.9  # of the loss at the start, which a paired run must come below to say anything
MOST_WORSE = 0.02  # relative loss, beyond which nothing is put down to chance, however far apart two seeds are
CLASSES = ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits")
"""Losses of outputs that may be bfloat16. Its numbers have three digits, which is enough for scores of classes; a prediction of
real numbers would be rounded to them."""


class Pair(NamedTuple):
    """The losses of two runs from one seed, in float32 and in bfloat16, and that at the start; NaN of a run that diverged."""

    float32: float
    bfloat16: float
    start: float


def choose(trial: Trial) -> Finding | None:
    """Try bfloat16; None where the machine has none that is fast, the loss is none of classes, or the runs are too short."""
    steps = int(trial.patience / (2 * PAIRS * trial.per_step))
    if steps < FEWEST or trial.plan.precision != "float32" or not has_fast_bfloat16(trial.problem.device):
        return None
    if not _suits(trial):
        return None
    trial.say("precision: timing bfloat16")
    try:
        changed, compared = _fastest(trial)
        figures, in_words = compared.figures("precision", VALUES), _in_words(trial, changed)
        faster = f"a step takes {compared.ratio:.2f} of its time in {in_words}"
        if compared.ratio > PAYS:
            return Finding("float32", f"{faster}: not worth rounding", figures)
        trial.say(f"precision: {PAIRS} pairs of runs of {steps:,} steps, in float32 and in {in_words}")
        pairs = _paired(trial, changed, steps)
    except Exception as error:
        return Finding("float32", f"the model does not compute in bfloat16: {error_text(error):.200}")
    figures |= {
        "float32_losses": [p.float32 for p in pairs],
        "bfloat16_losses": [p.bfloat16 for p in pairs],
        "steps": steps,
    }
    against = judged(pairs)
    if against:
        return Finding("float32", f"{faster}, but {against}", figures)
    runs = f"{len(pairs)} pairs of runs of {steps:,} steps"
    beside = dict[str, Finding]()
    if changed.memory_format != trial.plan.memory_format:
        beside["memory_format"] = Finding(changed.memory_format, f"the faster one in bfloat16, in which {faster}")
    return Finding("bfloat16", f"{faster}, and in {runs} the loss is no worse beyond chance", figures, beside)


def _fastest(trial: Trial) -> tuple[Plan, Compared]:
    """Time bfloat16 in the plan's memory format and, where the model has convolutions, in the other one; give the faster plan."""
    plan = trial.plan.replace(precision="bfloat16")
    compared = compare(trial, plan)
    if "memory_format" in trial.fixed or not memory_format.has_convolutions(trial):
        return plan, compared
    contiguous, channels_last = memory_format.VALUES
    other = plan.replace(memory_format=contiguous if plan.memory_format == channels_last else channels_last)
    try:
        with_other = compare(trial, other)
        if with_other.ratio > PAYS_BESIDE * compared.ratio:
            return plan, compared
        if other.memory_format == channels_last and not memory_format.loss_difference(trial) <= memory_format.SAME:
            return plan, compared
    except Exception:  # of a model that does not compute with channels last, as was said of it
        return plan, compared
    return other, with_other


def _in_words(trial: Trial, changed: Plan) -> str:
    """Say what is changed."""
    if changed.memory_format == trial.plan.memory_format:
        return "bfloat16"
    return f"bfloat16 {'with' if changed.memory_format == 'channels_last' else 'without'} channels last"


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device computes with bfloat16 itself, rather than by way of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile", "arm_bf16"))
    return device.type == "cpu" and any(supported() for supported in asked if supported is not None)


def _suits(trial: Trial) -> bool:
    """Whether the model computes in float32, and the loss of a batch is one of scores of classes."""
    with closing(TimedDescent(trial.problem, trial.plan)) as timed:
        if {p.dtype for p in timed.descent.model.parameters()} != {torch.float32}:
            return False
        timed.take(1)
        with LossCalls() as noted:
            evaluated(timed.descent)
    return bool(noted.calls) and all(call.name in CLASSES for call in noted.calls)


def _paired(trial: Trial, changed: Plan, steps: int) -> list[Pair]:
    """Train the pairs, by the trial's plan and the changed one; fewer where the first took all of the time, as validation may
    take longer than the steps."""
    short, pairs, started = _short(trial.plan, steps), list[Pair](), time.perf_counter()
    plans = short, short.replace(precision=changed.precision, memory_format=changed.memory_format)
    for number in range(PAIRS):
        if number and time.perf_counter() - started > trial.patience:
            break
        ones = [_trained(trial.problem, plan.replace(seed=plan.seed + number)) for plan in plans]
        pairs.append(Pair(ones[0][1], ones[1][1], ones[0][0]))
    return pairs


def _short(plan: Plan, steps: int) -> Plan:
    """Give the plan of a finished run of so many steps, by the rules that a run of that length would have."""
    given = {knob: plan.why(knob).source == "given" for knob in ("learning_rate", "constants")}
    constants = plan.constants if given["constants"] else priors.constants(plan.rule, steps)[0]
    return plan.replace(
        steps=steps,
        learning_rate=plan.learning_rate if given["learning_rate"] else priors.usual_rate(plan.rule, steps),
        constants=constants,
        schedule=priors.schedule(plan.rule, constants, steps)[0],
        weight_decay_schedule=None,  # one in steps need not fit into these
        validate_every=steps,
        snapshot_every=0,
        digest_every=0,
        patience=None,
        keep="last",
    )


def _trained(problem: Problem, plan: Plan) -> tuple[float, float]:
    """Train a run, and give its loss before and after, NaN where it diverged."""
    descent, recorder = Descent(problem, plan), Recorder()
    try:
        descend(descent, recorder)
    except ThalwegError:
        return math.nan, math.nan
    recorder.stop_request.check("Interrupted in the search.")
    return descent.initial_validation.get("loss", math.nan), descent.last_validation.get("loss", math.nan)


def judged(pairs: Sequence[Pair]) -> str:
    """Say why pairs of runs do not speak for bfloat16; nothing where they do. Chance is how far runs from two seeds lie apart.

    >>> judged([Pair(0.50, 0.503, 2.3), Pair(0.52, 0.519, 2.3)]), judged([Pair(0.50, 0.55, 2.3), Pair(0.52, 0.572, 2.3)])
    ('', 'the loss is 10.0 % worse in paired runs')
    """
    if len(pairs) < PAIRS:
        return "there was no time for the pairs of runs that tell whether its loss is as good"
    if not all(math.isfinite(value) for pair in pairs for value in pair):
        return "not all runs ended with a finite loss"
    if any(min(pair) <= 0 for pair in pairs):
        return "a run ended with a loss of zero or less, which cannot be compared"
    if any(pair.float32 > LEARNT * pair.start for pair in pairs):
        return "runs of so few steps learnt too little to tell whether its loss is as good"
    worse = statistics.fmean(math.log(pair.bfloat16 / pair.float32) for pair in pairs)
    chance = statistics.stdev(math.log(pair.float32) for pair in pairs)
    return (
        f"the loss is {100 * math.expm1(worse):.1f} % worse in paired runs" if worse > min(chance, MOST_WORSE) else ""
    )
