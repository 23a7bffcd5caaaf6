"""The monitor: looks for symptoms after each step, asks the causes of those that are seen, and pairs findings with cures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from thalweg.errors import ThalwegError
from thalweg.landscape.critical_step import critical_step, try_lengths
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.step_figures import StepFigures
from thalweg.watch.cause import Cause, Detector, check_diagnosis, warn_of_failure
from thalweg.watch.causes import all_causes
from thalweg.watch.findings import ranked, with_consequences
from thalweg.watch.probe import NotMeasuredError, Probe, measured_or_not
from thalweg.watch.step_recorder import MEASURE_EVERY
from thalweg.watch.symptom import BEST_LENGTH, CRITICAL_STEP, LIKELY_LENGTH, QUARTER, Symptom
from thalweg.watch.symptoms import SYMPTOMS
from thalweg.watch.symptoms.diverging import begins_to_diverge
from thalweg.watch.usual import EVERY, Usual, usual_after
from thalweg.watch.window import Place, Validated, Window

MOST_ATTEMPTS = 8
MOST_RAISES = 3  # of the learning rate
MOST_DEVIATIONS = 5.0  # above the mean loss, for a snapshot to be taken
SAME_FAILURE_STEPS = 10  # a failure so soon after another one counts as the same failure
LEARNT = 0.9  # of the loss at the start: with more, after something was abnormal, nothing was learnt yet
CONVALESCENCE = 40  # steps after the latest failed one until a snapshot is taken again: it might fail again
ASK_EVERY, ASK_SHARE = 100, 0.05  # steps, and share of the run, before causes of a symptom that lasts are asked again
LASTING = ("stagnant", "oscillating", "overfitting")  # symptoms that go on for many steps
FIRST_TRIES, TRY_EVERY = (
    (8, 12, 16, 32, 48, 64, 80, 96, 128, 160, 192),
    200,
)  # steps whose length is tried on the next batch
RECOVERING = 4  # steps that are tried after the rate was lowered
OVERSHOOTS = 0.5  # times the step that already raise the loss
MOST_RECOVERIES = 3  # attempts after which that is tried
EARLY = (16, 51)  # steps at which causes that show themselves from the beginning are asked without a symptom
LATE = 32  # steps by which that may be put off, until one is finite


class Monitor:
    """Observes every step of one run, and gives diagnoses with their cures.

    `attempts` counts the rollbacks for one failure; one at most ten steps after the latest failed step is the same failure.

    After the first 200 steps those that cannot show anything (`Usual`) come into the window some steps later, together, or as
    soon as somebody asks for it: what is found, and when, is the same. Of steps below `usual_before` neither update nor weights
    need be kept.

    Arguments:
        causes: the causes to ask; None: all, third parties' included.
        places: the parameters, in the order of all norms, as far as they are known.
        total: how many steps there will be, if that is known.
    """

    def __init__(
        self, causes: Iterable[Cause] | None = None, places: Iterable[Place] = (), total: int | None = None
    ) -> None:
        self._window = Window()
        self._window.places, self._window.total = tuple(places), total
        self._set_usual(None)
        self._later: list[tuple[Any, ...]] = []  # the figures of such steps, as far as these have some
        self.attempts = 0
        self.failed_at = -1
        self.undone_at = -1  # the latest step that was undone for its rate
        self.dismissed = list[str]()  # symptoms that are no fault of this run
        self.raises = 0
        self.early_looks = 0  # of those at `EARLY` steps, that were made
        self.recovering = 0  # steps after going back of which it is tried whether they still go too far
        self.noted_at: dict[str, int] = {}  # cause -> last step of a diagnosis whose cure changes nothing
        self.restarted_at: dict[str, int] = {}  # cause -> step at which layers or the optimiser began anew for it
        self.asked_at: dict[str, int] = {}  # lasting symptom -> step at which its causes were asked last
        self._marked: dict[str, Any] | None = None
        self.trying = False  # the length of the last step on the next batch
        self.pending: Symptom | None = None  # whose causes are asked after the next step, of which the update is kept
        known = list(all_causes() if causes is None else causes)
        self.causes = sorted((cause for cause in known if cause.question is not None), key=lambda each: each.rank)
        asked = [cause for cause in known if cause.during is not None]
        self.detectors: list[tuple[Cause, Detector]] = [(cause, cause.during()) for cause in asked if cause.during]

    @property
    def window(self) -> Window:
        """The figures of all steps so far. Who asks for it may change it, so the next step is looked at whatever it is like."""
        self._set_usual(None)
        return self._caught_up()

    def _set_usual(self, usual: Usual | None) -> None:
        self._usual = usual  # what the next steps must be like to come into the window later
        self.usual_before = 0 if usual is None else usual.before

    def _caught_up(self) -> Window:
        for figures in self._later:
            self._window.push(StepFigures(*figures), is_usual=True)
        self._later.clear()
        return self._window

    def expect(self, loss: float) -> None:
        """Set the loss before the first step, measured on many examples: less noisy than the first batch's loss."""
        if math.isfinite(loss):
            self.window.initial_loss = loss

    def validated(self, step: int, loss: float) -> None:
        """Take in a validation loss."""
        window = self.window
        if math.isfinite(loss) and math.isfinite(window.smoothed):
            window.validations.append(Validated(step, loss, window.smoothed))

    def wants_update(self, step: int) -> bool:
        """Tell whether a probe of this step will be asked for the loss along its update, for which weights are to be kept."""
        if step < self.usual_before:
            return False
        return self.pending is not None or self.recovering > 0 or self.trying or self._tries(step)

    def _tries(self, step: int) -> bool:
        """Tell whether the length of this step is tried on the next batch: it comes to where that is done, or past it."""
        if self._window.finds_rate:
            return False
        last = min(self._later[-1][0] if self._later else self._window.step, step - 1)
        if step <= FIRST_TRIES[-1]:
            return any(last < each <= step for each in FIRST_TRIES)
        return step // self._tries_every > last // self._tries_every

    @property
    def _tries_every(self) -> int:
        return round(max(TRY_EVERY, ASK_SHARE * (self._window.total or 0)))

    @property
    def usual_norm(self) -> float:
        """The largest gradient norm of a step that may come into the window later."""
        return 0.0 if self._usual is None else self._usual.norm

    def most_usual(self, number: int) -> float:
        """Give the largest norm that the gradient of a parameter had in the last steps that measured it; 0 of none."""
        norms = [each[number] for each in self._window.by_parameter if number < len(each)]
        return max(norms, default=0.0)

    def takes_later(self, figures: tuple[Any, ...]) -> bool:
        """Add a step that was taken, to be looked at later, where it cannot show anything; else give False.

        `figures` are the first ones of its `StepFigures`, in their order: none of weights or of memory. Where the norm of its
        gradient is NaN it was not measured.
        """
        usual = self._usual
        if usual is None:
            return False
        before, loss, norm = usual
        if figures[0] >= before or not -math.inf < figures[1] <= loss or figures[3] > norm:
            return False
        self._later.append(figures)
        return True

    def observe(self, figures: StepFigures, probe: Probe | None = None) -> list[Diagnosis]:
        """Add one step to the window, and give what the causes find, gravest first.

        `probe` makes the rare measurements that causes ask for; it is used only where something is seen.
        """
        is_more = figures.weight_norms is not None or figures.skipped or figures.memory
        if figures.gradient_norm >= 0.0 and not is_more and self.takes_later(figures):
            return []
        window, probe = self._caught_up(), probe or Probe()
        tried, self.trying = self.trying, self._tries(figures.step)
        window.push(figures)
        window.lowered_at = self.undone_at
        found = self._detected(window)
        pending, self.pending = self.pending, None
        if tried:
            self._try_length(probe)
        if self.recovering and (still := self._still_overshoots(probe)) is not None:
            found += self._explained(still, probe)
        if window.is_finite and self.early_looks < len(EARLY) and figures.step >= (early := EARLY[self.early_looks]):
            self.early_looks += 1
            if figures.step < early + LATE:  # a watch that begins later saw no beginning
                with probe.measuring():
                    found += self._explained(_early(figures.step), probe, early=early)
        for look in SYMPTOMS if not found else ():
            symptom = look(window)
            if symptom is None or symptom.name in self.dismissed or not self._is_due(symptom):
                continue
            if symptom.name == "stagnant" and symptom.evidence.keys().isdisjoint((BEST_LENGTH, LIKELY_LENGTH, QUARTER)):
                self.pending = symptom  # its causes are told apart by the update, which is kept of the next step
            else:
                found += self._explained(symptom, probe)
        if pending is not None and self.pending is None and window.is_finite:
            found += self._explained(replace(pending, step=figures.step), probe)
        self._set_usual(None if found else self._what_is_usual())
        return self._with_cures(ranked(found), figures) if found else []

    def _what_is_usual(self) -> Usual | None:
        """Give what the next steps must be like to come into the window later, up to the next look at what lasts, measurement of
        weights or try of a step's length; None in the beginning, and while something is asked or tried."""
        step = self._window.step
        if self.pending is not None or self.recovering or self.trying or step < FIRST_TRIES[-1]:
            return None
        if self.early_looks < len(EARLY) or not all(cause.only_memory for cause, _ in self.detectors):
            return None
        if self._usual is not None and step < self._usual.before:
            return self._usual
        tries = MEASURE_EVERY if self._window.finds_rate else self._tries_every
        return usual_after(self._window, min(step - step % every + every for every in (EVERY, MEASURE_EVERY, tries)))

    def _detected(self, window: Window) -> list[tuple[Cause, Diagnosis]]:
        found: list[tuple[Cause, Diagnosis]] = []
        for cause, detector in self.detectors:
            try:
                diagnosis = detector.observe(window)
                if diagnosis is not None:
                    found.append((cause, check_diagnosis(diagnosis)))
            except Exception as error:
                warn_of_failure(cause, error, "is left out of the rest of this run")
                self.detectors = [pair for pair in self.detectors if pair[0] is not cause]
        return found

    def _is_due(self, symptom: Symptom) -> bool:
        """Tell whether a symptom's causes are asked now: those of a lasting one are so now and then only."""
        if symptom.name not in LASTING:
            return True
        name = _by_severity(symptom.name, symptom.severity)
        last = self.asked_at.get(name)
        if last is not None and symptom.step < last + max(ASK_EVERY, ASK_SHARE * (self._window.total or 0)):
            return False
        self.asked_at[name] = symptom.step
        return True

    def _explained(self, symptom: Symptom, probe: Probe, *, early: int = 0) -> list[tuple[Cause, Diagnosis]]:
        """Ask the causes that a symptom may have. Of one whose step cannot stand the first answer is enough."""
        found: list[tuple[Cause, Diagnosis]] = []
        ruled_out, not_measured = list[str](), list[str]()
        for cause in self.causes:
            if symptom.name not in cause.symptoms or cause.question is None or (early and cause.early != early):
                continue
            if symptom.asked and cause.name not in symptom.asked:
                continue
            try:
                diagnosis = cause.question(symptom, self._window, probe)
                if diagnosis is None:
                    ruled_out.append(cause.name)
                else:
                    found.append((cause, check_diagnosis(diagnosis)))
                    if symptom.severity == "critical":
                        break
            except NotMeasuredError as reason:
                not_measured.append(f"{cause.name}: {reason}")
            except ThalwegError:
                raise
            except Exception as error:
                warn_of_failure(cause, error, "is left out of the rest of this run")
                self.causes = [each for each in self.causes if each is not cause]
        return [
            (
                cause,
                replace(
                    each, ruled_out=(*each.ruled_out, *ruled_out), not_measured=(*each.not_measured, *not_measured)
                ),
            )
            for cause, each in found
        ]

    def _try_length(self, probe: Probe) -> None:
        """Try which multiple of the step before would have lowered this batch's loss most."""
        window, step = self._window, self._window.step - 1
        if not (window.is_finite and window.is_steady):
            return
        with suppress(NotMeasuredError), measured_or_not(), probe.measuring():
            tried = try_lengths(probe.others_along())
            window.lengths.append((step, tried.best))
            window.parts.append((step, tried.whole, tried.quarter))
            if not window.has_few_examples:
                window.fixed_answers.append(probe.constant_loss())

    def _still_overshoots(self, probe: Probe) -> Symptom | None:
        """See, in the first steps after the rate was lowered, a step far beyond the longest that lowers the loss of its batch.

        In a healthy run such steps occur too; after a failure they say how much too high the rate still is.
        """
        self.recovering -= 1
        if not self._window.is_finite or "diverging" in self.dismissed:
            return None
        try:
            with measured_or_not(), probe.measuring():
                found = critical_step(probe.loss_along())
        except NotMeasuredError:
            self.recovering = 0
            return None
        if found.raises > OVERSHOOTS:
            return None
        return Symptom(
            name="diverging",
            step=self._window.step,
            since=self._window.step,
            text=f"after the rate was lowered a step is still {1 / found.raises:.3g} times as long as one that raises the loss of"
            " its batch",
            evidence={CRITICAL_STEP: {"value": found.multiple or found.raises, "threshold": OVERSHOOTS}},
            severity="critical",
        )

    def _with_cures(self, found: list[tuple[Cause, Diagnosis]], figures: StepFigures) -> list[Diagnosis]:
        """Pair findings with cures. Of those that undo the step only the first is given: the others may follow from it."""
        causes = {cause.name: cause for cause, _ in found}
        diagnoses: list[Diagnosis] = []
        changed = False
        for diagnosis in with_consequences(found):
            cause = causes[diagnosis.name]
            if diagnosis.cure is None and cause.cure is not None:
                diagnosis = replace(diagnosis, cure=self._cure(cause, figures.step))
            if _begins_anew(diagnosis.cure) and diagnosis.cure is not None and diagnosis.name in self.restarted_at:
                once = replace(diagnosis.cure, rollback=False, restart=(), forget=False, warmup=0)
                diagnosis = replace(diagnosis, cure=once)
            if intervenes(diagnosis.cure):
                if not changed:
                    self._count(diagnosis, figures.step)
                    diagnoses.append(diagnosis)
                changed = True
            elif self._is_new(diagnosis, figures.step):
                diagnoses.append(diagnosis)
        return diagnoses

    def _cure(self, cause: Cause, step: int) -> Cure | None:
        assert cause.cure is not None
        try:
            return cause.cure(self._window, self._attempts_at(step) + 1)
        except Exception as error:
            warn_of_failure(cause, error, "proposes no cure")
            return None

    def _attempts_at(self, step: int) -> int:
        return self.attempts if step <= self.failed_at + SAME_FAILURE_STEPS else 0

    def _count(self, diagnosis: Diagnosis, step: int) -> None:
        cure = diagnosis.cure
        skips = cure is not None and cure.skip_batch  # a bad batch says nothing about the rate
        if _begins_anew(cure):
            self.restarted_at[diagnosis.name] = self.noted_at[diagnosis.name] = step
            return
        self.attempts = self._attempts_at(step) + (0 if skips else 1)
        if not skips:
            self.undone_at = max(self.undone_at, step)
            lowers = diagnosis.cure is not None and diagnosis.cure.rate_factor < 1
            self.recovering = RECOVERING if lowers and self.attempts <= MOST_RECOVERIES else 0
        self.failed_at = max(self.failed_at, step)

    def _is_new(self, diagnosis: Diagnosis, step: int) -> bool:
        """Tell whether a finding that lets the step stand was not made in the last steps already; of a lasting symptom, ever.

        A learning rate is raised a few times, in steps.
        """
        name = _by_severity(diagnosis.name, diagnosis.severity) if diagnosis.symptom in LASTING else diagnosis.name
        last = self.noted_at.get(name)
        self.noted_at[name] = step
        if diagnosis.cure is not None and diagnosis.cure.rate_factor > 1:
            self._window.lengths.clear()  # they were of another rate
            self._window.parts.clear()
            self.asked_at.pop(diagnosis.symptom, None)
            self.raises += 1
            return self.raises <= MOST_RAISES
        if diagnosis.symptom in LASTING:
            return last is None
        return last is None or step > last + SAME_FAILURE_STEPS

    def dismiss(self, symptom: str) -> None:
        """Look for a symptom no more: it is no fault of this run."""
        self.dismissed.append(symptom)
        self.attempts, self.failed_at, self.undone_at = 0, -1, -1

    def try_rates(self, can: bool) -> None:
        """Let it be known whether other rates can be tried on the run's first steps: then a suspicion is enough, once."""
        self.window.tries_rates = can and self.raises < MOST_RAISES

    def settle_rate(self) -> None:
        """Raise the learning rate no more: it is known which one gets furthest."""
        self.raises = MOST_RAISES
        self.window.tries_rates = False

    def stands(self, step: int) -> None:
        """Take back that a step was to be undone for its rate, where that is not done after all."""
        if self.failed_at == step:
            self.attempts = max(0, self.attempts - 1)
        self.failed_at = -1 if self.failed_at == step else self.failed_at
        self.undone_at = -1 if self.undone_at == step else self.undone_at
        self.recovering = 0

    def mark(self) -> None:
        """Remember the present figures, to which `went_back` returns."""
        self._marked = self.state_dict()

    def went_back(self) -> None:
        """Return to the figures of the last mark; how often what was tried is kept. The steps go on counting."""
        if self._marked is not None:
            self.load_state_dict(self._marked, keep_attempts=True)

    def trusts(self, loss: float) -> bool:
        """Whether weights that gave this loss are worth a snapshot: it is finite and within the usual range, and no parameter has
        lost its gradient; after something was abnormal, only once the loss is clearly lower than at the start."""
        window = self._caught_up()
        if not math.isfinite(loss) or window.start is None:
            return math.isfinite(loss)
        rises = "diverging" in self.dismissed
        if window.faded or (window.upset is not None and window.smoothed > LEARNT * window.start and not rises):
            return False
        mean, deviation = window.mean_and_deviation() or (window.start, 0.0)
        return loss <= max(window.start, *window.losses, mean + MOST_DEVIATIONS * deviation)

    def began_again(self, initial_loss: float | None) -> None:
        """Watch a run that went back to its beginning: what lasted is asked about anew, layers may be started anew."""
        self.window.initial_loss = initial_loss
        self.asked_at.clear()
        self.noted_at.clear()
        self.restarted_at.clear()
        self.attempts, self.failed_at, self.undone_at, self.recovering = 0, -1, -1, 0

    @property
    def exhausted(self) -> bool:
        """Whether the most attempts were made for this failure."""
        return self.attempts > MOST_ATTEMPTS

    @property
    def healthy(self) -> bool:
        """Whether this state is worth a snapshot: no recent step was abnormal, and none had to be undone for some time."""
        window = self._caught_up()
        if self.undone_at >= 0 and window.step <= self.undone_at + CONVALESCENCE:
            return False
        if window.skipped or ("diverging" not in self.dismissed and begins_to_diverge(window)):
            return False
        return not any(detector.suspicious for _, detector in self.detectors)

    def state_dict(self) -> dict[str, Any]:
        """Give the state as built-in types."""
        return {
            "window": self._caught_up().state_dict(),
            "attempts": self.attempts,
            "failed_at": self.failed_at,
            "undone_at": self.undone_at,
            "raises": self.raises,
            "recovering": self.recovering,
            "early_looks": self.early_looks,
            "trying": self.trying,
            "noted_at": dict(self.noted_at),
            "restarted_at": dict(self.restarted_at),
            "asked_at": dict(self.asked_at),
            "pending": None if self.pending is None else asdict(self.pending),
            "causes": {cause.name: detector.state_dict() for cause, detector in self.detectors},
            **({"dismissed": list(self.dismissed)} if self.dismissed else {}),
        }

    def load_state_dict(self, state: dict[str, Any], *, keep_attempts: bool = False) -> None:
        """Restore `state_dict`'s values; after a rollback the attempts, and what was noted and dismissed, are kept."""
        self._later.clear()  # steps that are undone
        self.window.load_state_dict(state["window"])
        self.early_looks = state.get("early_looks", sum(step <= self._window.step for step in EARLY))
        causes = state.get("causes", {})
        pending = state.get("pending")
        self.pending = None if pending is None or keep_attempts else Symptom(**pending)
        for cause, detector in self.detectors:
            if cause.name in causes:
                detector.load_state_dict(causes[cause.name])
        if not keep_attempts:
            for name in state.get("dismissed", []):
                self.dismiss(name)
            self.attempts, self.failed_at = state["attempts"], state["failed_at"]
            self.undone_at = state.get("undone_at", -1)
            self.noted_at, self.asked_at = dict(state.get("noted_at", {})), dict(state.get("asked_at", {}))
            self.restarted_at = dict(state.get("restarted_at", {}))
            self.raises, self.recovering = state.get("raises", 0), state.get("recovering", 0)
            self.trying = state.get("trying", False)


def _early(step: int) -> Symptom:
    """Give what is asked about in the first steps, whatever the loss does: faults that slow learning without stopping it."""
    return Symptom("stagnant", step, 1, "a part of the network cannot learn")


def _by_severity(name: str, severity: str) -> str:
    """Give the name by which something that lasts is remembered: after a mere note of it a warning is still news."""
    return f"{name} (note)" if severity == "note" else name


def _begins_anew(cure: Cure | None) -> bool:
    """Tell whether a cure lets layers or the optimiser begin anew, which is tried once for a cause."""
    return cure is not None and (bool(cure.restart) or cure.forget)


def intervenes(cure: Cure | None) -> bool:
    """Tell whether a cure undoes the step that was just taken, rather than letting it stand."""
    return cure is not None and (cure.rollback or cure.skip_batch)
