"""Stated rules for the knobs that are not searched. Each gives a value and its evidence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from statistics import fmean
from typing import Any

import numpy as np

from thalweg import rules
from thalweg import schedule as shapes
from thalweg.records.plan import Evidence, Plan
from thalweg.rules import Rule
from thalweg.rules.plain_form import PlainForm
from thalweg.schedule import Schedule

TIMESCALE, LONG_TIMESCALE = (
    0.3,
    1.0,
)  # shares of the run in which weight decay shrinks a weight by e: see `usual_timescale`
MEAN_POINTS = 1000  # steps, at the least, over which a schedule's mean is taken
TIMESCALES = (None, LONG_TIMESCALE, TIMESCALE, 0.1)  # tried after the rate, but for the one it has; None: no decay
MOST_DECAY = 1.0  # of weights
WARMUP_SHARE = 0.1  # of the run, where the rule has no second moment
MOST_WARMUP = 0.2  # share of the run, where it has one, and no candidate is judged before that
SHORT_RUN, SHORT_RUN_RATE = 1000, 0.0226  # steps, and the rate of AdamW that serves most runs of no more than these
SHORT_RUN_RATES = {"lion": 0.0147, "adafactor": 0.383, "schedule_free_adamw": 0.0333}  # of rules of their own
OPEN_DECAY = 0.2  # share of a run of open length in which its rate falls
OPEN_LENGTHS = 4.0  # shortest runs of an open length, over whose length weight decay is set
SHORT = 10_000  # steps below which beta2 = 0.99 serves better than 0.999

# Of adaptive rules (True) and others (False):
COMMON = {
    True: (3e-4, 3e-2),
    False: (3e-4, 0.3),
}  # defaults within say nothing of the rule's scale (PyTorch's SGD: 1e-3)
MIDDLE = {True: 1e-3, False: 0.1}  # usual rate, with which a default outside COMMON is compared


def rules_for(roles: Mapping[str, str], decided: Collection[str] = ()) -> tuple[str, ...]:
    """Give the rules that a search chooses among, where the person has not, the usual one first: Muon and schedule-free AdamW.

    On the suite of `bench/tuning` each of them ends lowest on some tasks, and beside them AdamW adds nothing. Where a schedule or
    an average of the weights is decided, AdamW is tried instead of its schedule-free form, which has its own. Without a hidden
    matrix Muon is AdamW, which is then tried alone.

    Arguments:
        roles: of each trainable matrix, by name (`thalweg.descent.matrix_roles`).
        decided: the knobs of the plan that the person has decided.

    >>> rules_for({"0.weight": "hidden", "2.weight": "output layer"}), rules_for({"head": "output layer"})
    (('muon', 'schedule_free_adamw'), ('adamw',))
    >>> rules_for({"0.weight": "hidden"}, ["ema"])
    ('muon', 'adamw')
    """
    if "hidden" not in roles.values():
        return ("adamw",)
    return ("muon", "adamw" if {"schedule", "ema"} & {*decided} else "schedule_free_adamw")


def usual_rule(roles: Mapping[str, str]) -> tuple[str, Evidence]:
    """Give Muon for networks with hidden matrices, else AdamW, as `rules_for` does, and why.

    >>> usual_rule({"0.weight": "hidden", "2.weight": "output layer"})[0], usual_rule({"head": "output layer"})[0]
    ('muon', 'adamw')
    """
    rule = rules_for(roles)[0]
    if rule == "muon":
        return rule, Evidence("derived", "Muon moves hidden matrices equally far in every direction")
    return rule, Evidence("derived", "AdamW, as there are no hidden matrices to train, for which Muon is made")


def is_adaptive(rule: str) -> bool:
    """Tell whether a rule's steps are as long whatever the gradient's scale, so that its rate does not scale with the loss.

    The equation is evaluated: gradients a hundred times as large move an adaptive rule's weight no farther.

    >>> is_adaptive("adamw"), is_adaptive("radam"), is_adaptive("lion"), is_adaptive("momentum")
    (True, True, True, False)
    """
    definition = rules.get(rule)
    return _step_length(definition, 100.0) < 10 * _step_length(definition, 1.0)


def _step_length(rule: Rule, gradient: float, steps: int = 10) -> float:
    """Give how far a weight moves in the last of some steps under one and the same gradient."""
    form, before = PlainForm(rule, np.zeros((1, 1)) if rule.is_matrix else 0.0, lr=1.0), 0.0
    for _ in range(steps):
        before = form.w
        form.step(gradient + 0.0 * form.w)
    return float(np.max(abs(form.w - before)))


def usual_rate(rule: str, steps: int | None = None) -> float:
    """Give a rate that works for most small networks under such a rule in a run of so many steps; None: in a short one.

    Of adaptive rules 0.0226 in runs of up to 1,000 steps, AdamW's best single rate for the development tasks of `bench/tuning`,
    and less in longer runs, by the root of their length; plain descent takes 0.1. Rules whose default is of another order, as
    Adadelta's, take as many times that.

    Lion and Adafactor were tried at ten rates each, 2.6 apart, on three of these tasks (46, 300 and 920 steps, three seeds).
    These single rates gave 1.46 and 1.00 times the loss of each task's best rate in geometric mean; those next to what the rule
    above gives (0.00215, 0.0215) 2.2 and 3.5. Adafactor's is the highest that was tried; Lion's gives 2.3 times the loss of
    0.00215 on a table with raw columns. They were chosen on these tasks, and longer runs, for which they are lowered as AdamW's,
    were not tried. Schedule-free AdamW's is the best of 0.0226, 0.0333 and 0.049 on all eight tasks, where the three are level
    within 2 %.

    >>> usual_rate("adamw", 300), usual_rate("adamw", 10_000), usual_rate("lion"), usual_rate("prodigy")
    (0.0226, 0.00715, 0.0147, 1.0)
    """
    definition = rules.get(rule)
    if definition.finds_rate:
        return 1.0
    if not is_adaptive(rule):
        return _rounded(0.1 * _order(rule))
    short_run = SHORT_RUN_RATES.get(definition.name, SHORT_RUN_RATE * _order(rule))
    return _rounded(short_run * min(1.0, (SHORT_RUN / (steps or SHORT_RUN)) ** 0.5))


def _order(rule: str) -> float:
    """Give the factor by which a rule's rates are larger than those of others of its kind."""
    own, adaptive = rules.get(rule).learning_rate, is_adaptive(rule)
    low, high = COMMON[adaptive]
    return 1.0 if own is None or low <= own <= high else own / MIDDLE[adaptive]


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def constants(rule: str, steps: int) -> tuple[dict[str, float | bool], Evidence]:
    """Give the rule's constants where a run's length says more than the rule's defaults."""
    known = rules.get(rule).constants
    if known.get("beta2", 0.0) <= 0.99 or steps >= SHORT:
        return {}, Evidence("default")
    reason = f"beta2 = 0.99 below {SHORT:,} steps, so that the second moment has many lifetimes within the run"
    return {"beta2": 0.99}, Evidence("derived", reason)


def warmup_steps(rule: str, chosen: Mapping[str, Any], steps: int, most: float = MOST_WARMUP) -> tuple[int, str]:
    """Give the steps of warm-up and the reason.

    2 / (1 - beta2) for Adam-like rules (Ma & Yarats 2019, arXiv:1910.04209: as good as RAdam), at most a share `most` of the run;
    for others a tenth. On the suite of `bench/tuning` AdamW at its usual rate ends lower with a fifth of the run than with a
    tenth, Muon does not.
    """
    known = {**rules.get(rule).constants, **chosen}
    beta2 = known.get("beta2", known.get("alpha"))
    if beta2 is None:
        return max(1, int(WARMUP_SHARE * steps)), "a tenth of the run"
    longest, wanted = max(1, int(most * steps)), round(2 / (1 - float(beta2)))
    stated = f"2 / (1 - {beta2:g}) = {wanted} steps (arXiv:1910.04209)"
    return (wanted, stated) if wanted <= longest else (longest, f"{most:.0%} of the run, as {stated} would be more")


def warmup_share(first_judged: float) -> float:
    """Give the longest warm-up, as a share of the run, of candidates that are first judged after such a share of it.

    They should have had their whole rate by then: with longer ones AdamW's candidates are ranked worse. A tenth it may be always.

    >>> warmup_share(0.1), warmup_share(0.35)
    (0.1, 0.2)
    """
    return max(WARMUP_SHARE, min(MOST_WARMUP, first_judged))


def schedule(
    rule: str,
    chosen: Mapping[str, Any],
    steps: int,
    most_warmup: float = MOST_WARMUP,
    *,
    length_is_open: bool = False,
) -> tuple[Schedule, Evidence]:
    """Give the schedule: linear to zero after a warm-up, except for rules that average the weights or find their own rate.

    `most_warmup`: share of the run, for `warmup_steps`. Where the length is open, and `steps` that of the shortest run, the
    warm-up is at most a tenth of that, and the rate stays where it is until the last fifth.
    """
    definition = rules.get(rule)
    if length_is_open and definition.average is None:
        warmup, why = (
            (0, "none for this rule") if definition.finds_rate else warmup_steps(rule, chosen, steps, WARMUP_SHARE)
        )
        reason = "stable until the last fifth, and then to zero by 1 - sqrt (arXiv:2405.18392): so a run can be of any length"
        return shapes.wsd(warmup=warmup, decay=OPEN_DECAY), Evidence(
            "derived", f"{reason}; warm-up: {why}, of the shortest one", {"warmup": warmup}
        )
    if definition.finds_rate:
        reason = (
            f"half a cosine to zero, as the rule's authors advise ({definition.source.split(', ')[-1]}); no warm-up, whose slow"
            f" progress would mislead a rule that finds its own rate"
        )
        return shapes.cosine(), Evidence("derived", reason)
    if definition.average is not None:
        warmup, why = warmup_steps(rule, chosen, steps, WARMUP_SHARE)
        source = definition.source.split(", ")[-1]
        reason = f"constant: the rule's own average of the weights takes the place of a decay ({source})"
        return shapes.constant(warmup=warmup), Evidence("derived", f"{reason}; warm-up: {why}", {"warmup": warmup})
    warmup, why = warmup_steps(rule, chosen, steps, most_warmup)
    reason = "linear to zero matches or beats cosine (arXiv:2310.07831, arXiv:2502.15938)"
    return shapes.linear(warmup=warmup), Evidence("derived", f"{reason}; warm-up: {why}", {"warmup": warmup})


def has_timescale(rule: str, chosen: Mapping[str, Any]) -> bool:
    """Tell whether a rule's decay shrinks weights by rate x decay a step: it is decoupled, and the rate is known beforehand.

    >>> has_timescale("adamw", {}), has_timescale("adam", {}), has_timescale("prodigy", {})
    (True, False, False)
    """
    definition = rules.get(rule)
    known = {name: value for name, value in chosen.items() if name in definition.constants}
    return not definition.couples(definition.complete(known)) and not definition.finds_rate


def usual_timescale(rule: str, learning_rate: float, steps: int) -> float:
    """Give the share of a run in which decay should shrink weights by a factor of e.

    It is 0.3, and 1 below the usual rate and under a rule that keeps an average of the weights. On the suite of
    `bench/tuning` runs at high rates end lower with more decay, those at lower ones with less. The rate of a rule with an
    average does not fall, so that the same decay shrinks weights twice as much over the run.

    >>> usual_timescale("muon", 0.0226, 500), usual_timescale("muon", 0.01, 500), usual_timescale("schedule_free_adamw", 0.1, 500)
    (0.3, 1.0, 1.0)
    """
    needs_less = learning_rate < usual_rate(rule, steps) or rules.get(rule).average is not None
    return LONG_TIMESCALE if needs_less else TIMESCALE


def weight_decay(
    rule: str,
    learning_rate: float,
    steps: int,
    chosen: Mapping[str, Any] | None = None,
    timescale: float | None = TIMESCALE,
    start: float = 1.0,
) -> tuple[float, Evidence]:
    """Give the weight decay under which weights shrink by a factor of e over a share of the run: 1 / (rate x share x steps).

    It is at most 1. `timescale` is that share; None: no decay. `start`: how many times as high a decay with a schedule of its own
    begins (`decay_start`).

    Source: Wang & Aitchison 2024, arXiv:2405.13698 (the timescale 1 / (rate x decay) is what transfers). For rules whose decay
    is part of the gradient the timescale has no such meaning: a small 1e-4 is taken, and none where the rule is adaptive, as the
    smallest decay outweighs gradients that are smaller still (six layers of sigmoids never learnt under Adam's 1e-4). Where the
    rule finds its own rate the timescale is not known beforehand, and AdamW's usual 0.01 is taken.
    """
    definition = rules.get(rule)
    if definition.couples(definition.complete(chosen or {})):
        if is_adaptive(rule):
            reason = (
                "none, as this rule's decay goes through the gradient, which it outweighs where gradients are small"
            )
            return 0.0, Evidence("derived", reason)
        return 1e-4, Evidence("derived", "a small constant, as this rule's decay goes through the gradient")
    if definition.finds_rate:
        return 0.01, Evidence(
            "default", "AdamW's usual constant, as the rate that it works with is found only in training"
        )
    if timescale is None:
        return 0.0, Evidence("searched", "none: of candidates at the same rate the one without decay was the best")
    wanted = 1.0 / (learning_rate * timescale * steps)
    stated = f"1 / (rate {learning_rate:.3g} x {timescale:g} x {steps} steps)"
    reason = f"{stated}: weights forget over {timescale:.0%} of the run (arXiv:2405.13698)"
    if wanted > MOST_DECAY:
        reason = f"the most that is taken, as {stated} = {wanted:.3g} would be more (arXiv:2405.13698)"
    if start != 1.0:
        reason += (
            f"; times {start:.3g} at its start, so that by its own schedule it shrinks weights by as much over the run"
        )
    figures = {"learning_rate": learning_rate, "steps": steps}
    return float(f"{min(wanted, MOST_DECAY) * start:.3g}"), Evidence("derived", reason, figures)


def decay_start(plan: Plan, steps: int) -> float:
    """Give how many times as high a decay with the plan's schedule begins as one with that of its rate, to shrink as much.

    That is over a run of so many steps: the mean of the rate's schedule over that of the decay's.

    >>> plan = Plan(schedule="linear", weight_decay_schedule="inverse_time")
    >>> round(decay_start(plan, 1000), 2), decay_start(plan.replace(weight_decay_schedule=None), 1000)
    (2.08, 1.0)
    """
    own = plan.weight_decay_schedule
    if own is None:
        return 1.0
    means = [_mean(schedule.resolve(steps, plan.steps_per_epoch), steps) for schedule in (plan.schedule, own)]
    return means[0] / means[1] if means[1] else 1.0


def _mean(schedule: Schedule, steps: int) -> float:
    """Give the mean factor of a schedule; in long runs, over every few steps."""
    return fmean(schedule.factor(step) for step in range(0, steps, max(1, steps // MEAN_POINTS)))
