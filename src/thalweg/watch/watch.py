"""The watch in a training loop of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from thalweg.errors import ArgumentError, DivergedError, NonFiniteError, nearest
from thalweg.landscape.loss_terms import TOTAL, is_gradient_due
from thalweg.landscape.restart import forget, restart_layers
from thalweg.landscape.trained_weights import has_learnt, look_trained
from thalweg.optim.optimizer import Optimizer
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.step_figures import StepFigures
from thalweg.terminal import warn
from thalweg.watch.loop_probe import LoopProbe
from thalweg.watch.monitor import Monitor
from thalweg.watch.step_recorder import Snapshot, StepRecorder, numbers
from thalweg.watch.window import FEW_EXAMPLES

_vector_norm: Callable[[Tensor], Tensor] = torch.linalg.vector_norm
Action = Literal["report", "warn", "raise"]
ACTIONS = ("report", "warn", "raise")
SNAPSHOT_EVERY = 50  # steps
BEGINNING, BEGINNING_SHARE = 200, 0.3  # steps, or share of a shorter `total`, for which the first weights are kept
NEEDS_BATCH = "Layers are started anew on a batch: give `step` the `closure=` that recomputes its loss."
ALL_EVERY = 4  # steps between measurements of all gradients, where nothing is unusual
SAME_STEPS = 100  # in which a diagnosis is not given again where nothing was done about it


class Watch:
    """Watches the steps of a training loop, names what goes wrong and says how to cure it.

        watch = tw.Watch(model, optimizer)
        for x, y in loader:
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            for diagnosis in watch.step(loss, closure=lambda: criterion(model(x), y)):
                print(diagnosis)

    It records gradients and learning rates within the optimiser's own step, so `step` may come at any place after it. Until it is
    asked for a cure it changes nothing: neither weights nor gradients, random numbers or modes. Where it fails itself, it says so
    once and stands aside.

    Arguments:
        model: the network.
        optimizer: any optimiser of PyTorch's kind that steps parameters of the model.
        action: what is done besides giving the diagnoses. "report": nothing; "warn": a Python warning for each that is no mere
            note; "raise": DivergedError for one that is critical, NonFiniteError where it says so. Or a function, which is called
            with each: `watch.apply` cures it, say.
        snapshot_every: steps between copies of weights and the optimiser's state, of which the last good one is kept, for
            `go_back` and for measuring at weights from before a failure; the first is made at once. 0: none.
        total: how many steps there will be, if that is known: then a schedule's end is no fault at the end.

    Raises ArgumentError where model and optimiser do not belong together.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        action: Action | Callable[[Diagnosis], object] = "report",
        snapshot_every: int = SNAPSHOT_EVERY,
        total: int | None = None,
    ) -> None:
        self._check(model, optimizer, action)
        self._action, self._monitor, self._every = action, Monitor(total=total), snapshot_every
        self._recorder: StepRecorder | None = StepRecorder(model, optimizer, self._monitor.wants_update)
        self._probe = LoopProbe(model, self._recorder)
        self._monitor.window.finds_rate = isinstance(optimizer, Optimizer) and optimizer.rule.finds_rate
        self._monitor.window.began_trained = look_trained(model)
        self._told: dict[str, int] = {}  # cause -> step at which it was told last, since anything was changed
        self._hook = model.register_forward_pre_hook(self._keep_inputs, with_kwargs=True)
        self._losses = list[float]()  # since the last step
        self._sizes = list[int]()  # of their batches
        self._terms = list[Mapping[str, float]]()  # of each
        self._snapshot_at = 0
        self._first: Snapshot | None = None  # kept as long as beginning again costs little
        self._first_state = self._monitor.state_dict()
        self._averages = False  # as was asked for
        self._expects = True  # no loss is known yet
        self._known = -1  # parameters whose places the window has
        self._guard, self._guard_norm = 0, 0.0  # the model's first one, and how large its gradient usually is
        if snapshot_every:
            self._take_snapshot()
            self._first = self._recorder.snapshot
        self.diagnoses: list[Diagnosis] = []
        """All that was found so far."""
        self.term_gradients: Mapping[str, float] = {}
        """The norm of the gradient of each term of the loss, as last measured; empty before that."""

    def step(
        self,
        loss: Tensor | float | Mapping[str, Tensor | float],
        closure: Callable[[], Any] | None = None,
        indices: Sequence[int] | Tensor | None = None,
        per_example: Tensor | None = None,
    ) -> list[Diagnosis]:
        """Look at the step that the optimiser has taken, and give what is wrong, gravest first; mostly nothing.

        Between two steps of the optimiser, as where gradients are accumulated, the loss is only kept: of several, the mean is the
        step's.

        Arguments:
            loss: the loss of the batch, one number; or its terms by name, whose sum is the loss, or the entry "loss" where there
                is one: then the diagnosis of a loss that is not finite says which term was so first. Terms may come and go.
            closure: computes the loss of this batch again, without a backward pass; called seldom, with gradients off. Without
                it what needs it is listed in the diagnoses' `not_measured`. Where it gives terms too, `term_gradients` is
                measured now and then, with gradients on, at the weights after the step: at most 2 % of the training's time.
            indices: of the batch's examples in the data, by which bad ones are named.
            per_example: the loss of each example, as the step computed it.

        Raises ArgumentError where the loss or a term is no single number, or there is none, and as `action` says.
        """
        try:
            if type(loss) is Tensor and per_example is None and self._takes_later(loss):
                self._probe.closure, self._probe.indices = closure, indices
                return []
        except Exception as error:
            self._stand_aside(error)
        value, terms = _read(loss)
        if self._recorder is None:
            return []
        try:
            self._probe.given(closure, indices, per_example)
            found = self._observe(value, terms)
        except Exception as error:
            self._stand_aside(error)
            return []
        found = [diagnosis for diagnosis in found if self._is_news(diagnosis)]
        self.diagnoses += found
        for diagnosis in found:
            self._act(diagnosis)
        return found

    def _stand_aside(self, error: Exception) -> None:
        self.close()
        warn(f"The watch failed and stands aside: {type(error).__name__}: {error}.", RuntimeWarning, stacklevel=3)

    def _takes_later(self, loss: Tensor) -> bool:
        """Take in a step that can show nothing, of which hardly more is read than loss and gradient; else give False."""
        recorder, probe = self._recorder, self._probe
        if recorder is None or recorder.plain is None or self._losses or probe.per_example is not None:
            return False
        if loss.numel() != 1 or not loss.is_floating_point():
            return False
        try:
            norms, total = self._few_norms(recorder.count, recorder.plain[1])
        except (TypeError, RuntimeError):  # a gradient is not there any more, or of another kind
            return False
        figures = recorder.count, loss.item(), recorder.plain[0], total, 1.0, False, 0, probe.size, 0.0, norms
        if not self._monitor.takes_later(figures):
            return False
        recorder.plain = None
        return True

    def _few_norms(self, count: int, gradients: list[Tensor]) -> tuple[Sequence[float], float]:
        """Measure a step's gradients and give their norms and that of all, infinite where it is not finite; mostly none, and NaN.

        Of all steps but every fourth only the gradient of the model's first parameter is measured, to which those of the others
        lead. Where its norm is above those of the last steps all are; but they are given only where that of all is unusual too,
        else the larger ones would be given more often than others.
        """
        is_due = count % ALL_EVERY == 0
        if not is_due and _vector_norm(gradients[self._guard]).item() <= self._guard_norm:
            return (), math.nan
        norms = numbers(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage]
        total = math.hypot(*norms)
        if not math.isfinite(total):
            return norms, math.inf
        return (norms, total) if is_due or total > self._monitor.usual_norm else ((), math.nan)

    def _is_news(self, diagnosis: Diagnosis) -> bool:
        """Tell whether a diagnosis was not given in the last steps already, at which nothing was done about it."""
        step, last = diagnosis.step or 0, self._told.get(diagnosis.name)
        if last is not None and last <= step < last + SAME_STEPS:
            return False
        self._told[diagnosis.name] = step
        return True

    def validated(self, loss: float) -> None:
        """Take in a validation loss, by which overfitting shows itself at the next step.

        Arguments:
            loss: one number.
        """
        if self._recorder is not None:
            self._monitor.validated(self._recorder.count, _number(loss))

    def apply(self, diagnosis: Diagnosis) -> None:
        """Apply what the cure of a diagnosis says of learning rate, clipping, weight decay and layers to start anew (not in a
        network that looks trained), and go back where the step cannot stand; nothing where it says other things. After a batch
        that gave no finite gradient, steps on such gradients are left out.

        Raises ArgumentError where it is to go back and there is no snapshot, or layers are to be started anew and the last step
        was given no `closure`.
        """
        cure = diagnosis.cure
        if cure is None:
            return
        if cure.skip_batch:
            self._leave_out()
        else:
            recorder, began_trained = self._recorder, self._monitor.window.began_trained
            if cure.restart and recorder and has_learnt(recorder.model, began_trained, self._snapshot_at):
                return
            if cure.restart and self._probe.closure is None:
                raise ArgumentError(NEEDS_BATCH)
            if cure.rollback:
                self.go_back()
            elif cure.begin_again and cure.decay_factor < 1 and self._first is not None:
                # Weights that shrank do not come back by themselves. What was learnt at too low a rate is kept, little as it is:
                # the loop gives no step back.
                self.begin_again()
            if cure.forget and self._recorder is not None:
                forget(self._recorder.optimizer, self._recorder.model.modules())
            if cure.restart:
                self.restart(cure.restart, variance=cure.restart_variance)
            self._apply(cure)

    def _leave_out(self) -> None:
        """Undo a step whose gradient was not finite, where the optimiser took it, and let it take no such step any more."""
        self._told.clear()
        if self._recorder is not None:
            if not self._monitor.window.skipped:
                self.go_back()
            else:
                self._recorder.mend_buffers()
            self._recorder.guards = True

    def go_back(self, *, rate_factor: float = 1.0, clip_norm: float | None = None) -> None:
        """Restore weights, buffers and the optimiser's state of the last good snapshot, and go on as `change` says.

        Raises ArgumentError where there is no snapshot.
        """
        recorder = self._recorder
        if recorder is None or recorder.snapshot is None:
            raise ArgumentError(
                "There is no snapshot to go back to: it is taken every `snapshot_every` steps, while the watch is at work."
            )
        recorder.go_back(recorder.snapshot)
        self._told.clear()
        self._monitor.went_back()
        self._expects = True
        self.change(rate_factor=rate_factor, clip_norm=clip_norm)

    def begin_again(self) -> None:
        """Restore weights, buffers and the optimiser's state as they were when the watch began, or when layers were started anew
        since; the loop goes on where it is.

        Raises ArgumentError where they are not kept: they are for 200 steps, or 0.3 of a shorter `total`, unless `snapshot_every`
        is 0.
        """
        recorder, initial_loss = self._recorder, self._monitor.window.initial_loss
        if recorder is None or self._first is None:
            raise ArgumentError(
                "The weights that the watch began with are not kept any more, or never were. Make model and optimiser anew, and"
                " begin the loop again."
            )
        recorder.go_back(self._first)
        recorder.snapshot, self._snapshot_at = self._first, 0
        self._told.clear()
        self._monitor.load_state_dict(self._first_state, keep_attempts=True)
        self._monitor.began_again(initial_loss)
        self._expects = True
        self._monitor.mark()

    def change(
        self,
        *,
        rate_factor: float = 1.0,
        clip_norm: float | None = None,
        decay_factor: float = 1.0,
        warmup: int = 0,
        anneal: float = 0.0,
        ema: float | None = None,
    ) -> None:
        """Change learning rate, clipping and weight decay from the next step on, within the optimiser's steps: its settings, and
        a schedule that writes into them, go on as they were.

        Arguments:
            rate_factor: multiplies all learning rates, on top of what it was changed by before.
            clip_norm: the largest norm of all gradients together; the least that was given holds.
            decay_factor: multiplies the weight decay, likewise on top.
            warmup: the rates rise in a line over so many steps.
            anneal: each rate is at least this share of its highest so far, falling in a line to zero at the end, as `total` says;
                where that is not known, over as many steps as were taken.
            ema: decay of an average of the weights that is kept from here on, see `averaged`.

        Raises ArgumentError for values that are none of these.
        """
        _check_change(rate_factor=rate_factor, decay_factor=decay_factor, warmup=warmup, anneal=anneal)
        if clip_norm is not None:
            _check_change(clip_norm=clip_norm)
        if ema is not None and not 0 <= ema < 1:
            raise ArgumentError(f"`ema` is {ema}, but the decay of an average is at least 0 and below 1, such as 0.99.")
        self._apply(
            Cure(
                "",
                rate_factor=rate_factor,
                clip_norm=clip_norm,
                decay_factor=decay_factor,
                warmup=warmup,
                anneal=anneal,
                ema=ema,
            )
        )

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Within, the model holds the average of its weights that `change(ema=…)` has asked for; afterwards its own again.

            with watch.averaged():
                loss = validate(model)

        The running statistics of batch normalisation are those of its own weights; `thalweg.optim.recalibrated` measures the
        average's.

        Until a step was taken since, after a rollback, and where the watch stands aside, these are its own.

        Raises ArgumentError where none was asked for.
        """
        recorder = self._recorder
        if not self._averages:
            raise ArgumentError(
                "No average of the weights is kept: `watch.change(ema=0.99)` begins one, at the next step."
            )
        if recorder is None:
            yield
            return
        with recorder.averaged():
            yield

    def restart(self, layers: Collection[str], *, variance: float = 1.0) -> tuple[str, ...]:
        """Start layers anew, so that each unit's signal has mean zero and variance one on the last batch; the optimiser forgets
        them. Gives the names of those that were: linear layers, convolutions, normalisations and recurrent ones can be, of which
        the last are drawn as PyTorch draws them.

        Arguments:
            layers: their names in the model.
            variance: of each unit's signal, in place of one.

        Raises ArgumentError where the last step was given no `closure`.
        """
        recorder, closure = self._recorder, self._probe.closure
        if recorder is None:
            return ()
        if closure is None:
            raise ArgumentError(NEEDS_BATCH)
        generator = torch.Generator().manual_seed(recorder.count)
        with self._probe.unchanged(weights=False):
            restarted = restart_layers(recorder.model, closure, layers, generator, variance=variance)
        forget(recorder.optimizer, (recorder.model.get_submodule(name) for name in restarted))
        recorder.before = recorder.earlier = None  # of weights that are no more
        if self._every:
            self._take_snapshot()
            self._first = self._first and recorder.snapshot
        return restarted

    def _apply(self, cure: Cure) -> None:
        self._told.clear()
        if self._recorder is not None:
            count = self._recorder.count
            end = self._monitor.window.total or 2 * count
            self._averages |= cure.ema is not None
            cure = replace(cure, accumulate=1)  # batches are the loop's own
            self._recorder.changes = self._recorder.changes.with_cure(cure, count, end)

    def close(self) -> None:
        """Take all hooks out of optimiser and model. Nothing is watched any more; changes of rate and clipping end."""
        if self._recorder is not None:
            self._recorder.close()
            self._hook.remove()
            self._recorder = self._first = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _observe(self, loss: float, terms: Mapping[str, float]) -> list[Diagnosis]:
        recorder, monitor = self._recorder, self._monitor
        assert recorder is not None
        size = self._probe.size
        if not recorder.took_step:
            self._losses.append(loss)
            self._sizes.append(size)
            self._terms.append(terms)
            if math.isfinite(loss) or len(self._losses) > 1:
                return []
            lost = StepFigures(recorder.count + 1, loss, math.nan, math.nan, terms=terms)
            return monitor.observe(lost, self._probe)
        last = loss
        if self._losses:
            loss, size, terms = self._together(loss, size, terms)
        figures = recorder.figures(loss, size, terms)
        assert figures is not None
        if terms and is_gradient_due(figures.step, len(terms)) and math.isfinite(figures.loss):
            self.term_gradients = self._probe.term_gradients() or self.term_gradients
        if self._expects:
            window, self._expects = monitor.window, monitor.window.count == 0
            if self._expects and window.initial_loss is None and self._probe.size >= FEW_EXAMPLES:
                monitor.expect(figures.loss)
        if self._known != recorder.stepped:
            self._known, window = recorder.stepped, monitor.window
            self._guard = recorder.first_in_model
            window.places, window.not_stepped, window.frozen = recorder.places, recorder.not_stepped, recorder.frozen
        found = monitor.observe(figures, self._probe)
        if self._first and figures.step > min(BEGINNING, BEGINNING_SHARE * (monitor.window.total or math.inf)):
            self._first = None
        if self._every and figures.step % self._every == 0 and not found and monitor.healthy and monitor.trusts(last):
            self._take_snapshot()
        self._set_plain()
        return found

    def _set_plain(self) -> None:
        """Let the recorder do as little as can be up to the next step of which more may be asked."""
        recorder, before = self._recorder, self._monitor.usual_before
        assert recorder is not None
        if self._every:
            before = min(before, recorder.count - recorder.count % self._every + self._every)
        recorder.plain_before = before if recorder.can_be_plain and self._known == recorder.stepped else 0
        if recorder.plain_before:
            self._guard_norm = self._monitor.most_usual(self._guard)

    def _together(self, loss: float, size: int, terms: Mapping[str, float]) -> tuple[float, int, Mapping[str, float]]:
        """Give loss, size and terms of a step of several batches, of which these are the last."""
        losses, sizes, all_terms = [*self._losses, loss], [*self._sizes, size], [*self._terms, terms]
        for kept in (self._losses, self._sizes, self._terms):
            kept.clear()
        return math.fsum(losses) / len(losses), sum(sizes), _means(all_terms)

    def _take_snapshot(self) -> None:
        assert self._recorder is not None
        recorder = self._recorder
        self._snapshot_at = recorder.count
        recorder.take_snapshot(over_last=recorder.snapshot is not self._first)
        self._monitor.mark()

    def _keep_inputs(self, module: nn.Module, arguments: Any, keywords: Any) -> None:
        self._probe.inputs = (arguments, keywords)

    def _act(self, diagnosis: Diagnosis) -> None:
        if not isinstance(self._action, str):
            self._action(diagnosis)
        elif self._action == "raise" and diagnosis.severity == "critical":
            raise (NonFiniteError if diagnosis.symptom == "non-finite" else DivergedError)(str(diagnosis))
        elif self._action != "report" and diagnosis.severity != "note":
            warn(str(diagnosis), RuntimeWarning, stacklevel=3)

    @staticmethod
    def _check(model: Any, optimizer: Any, action: Any) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError(
                f"`model` is a {type(model).__name__}, but the watch needs the network, a torch.nn.Module."
            )
        if not isinstance(optimizer, torch.optim.Optimizer):
            kind = type(optimizer).__name__
            raise ArgumentError(
                f"`optimizer` is a {kind}, but the watch needs the torch.optim.Optimizer that steps the model."
            )
        if not callable(action) and action not in ACTIONS:
            hint = nearest(action, ACTIONS) if isinstance(action, str) else ""
            raise ArgumentError(
                f"`action` is {action!r}, which is none of {', '.join(ACTIONS)}, and no function.{hint}"
            )
        stepped = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
        if not any(id(parameter) in stepped for parameter in model.parameters()):
            raise ArgumentError(
                f"None of the {len(stepped)} parameters that the optimiser steps is the model's. Make the optimiser from"
                f" `model.parameters()`, after the model was copied, moved to a device or given new layers."
            )


def _check_change(**values: float) -> None:
    for name, value in values.items():
        least = name in ("rate_factor", "clip_norm")  # above zero
        if not math.isfinite(value) or value < 0 or (least and value == 0):
            raise ArgumentError(
                f"`{name}` is {value}, but it is a finite number {'above' if least else 'of at least'} 0."
            )


def _read(loss: Any) -> tuple[float, Mapping[str, float]]:
    """Give a loss as a number, and its terms where it is given as such. Raises ArgumentError where one is no number."""
    if isinstance(loss, Tensor) or not isinstance(loss, Mapping):
        return _number(loss), {}
    if not loss:
        raise ArgumentError("`loss` is an empty dict. Give the terms by name, {'kl': kl}, or the loss, one number.")
    given: dict[str, float] = {}
    for name, value in loss.items():
        if not isinstance(name, str):
            raise ArgumentError(
                f"`loss` is a dict with the key {name!r:.60}. Call each term by a text, as in {{'kl': kl}}."
            )
        given[name] = _number(value, f"`loss[{name!r}]`")
    terms = {name: value for name, value in given.items() if name != TOTAL}
    return given[TOTAL] if TOTAL in given else sum(terms.values()), terms


def _number(loss: Any, name: str = "`loss`") -> float:
    """Give a loss as a number. Raises ArgumentError where it is none."""
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ArgumentError(
            f"{name} is a tensor of shape {tuple(loss.shape)}, but the watch takes one number a step: give its mean, as in"
            f" `loss.mean()`."
        )
    try:
        return float(loss.item() if isinstance(loss, Tensor) else loss)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"{name} is {loss!r:.60}, but the watch takes one number a step: {error}.") from error


def _means(terms: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Give the mean of each term over the batches of a step; one that a batch lacks adds nothing there."""
    if not any(terms):
        return {}
    names = dict.fromkeys(name for each in terms for name in each)
    return {name: sum(each.get(name, 0.0) for each in terms) / len(terms) for name in names}
