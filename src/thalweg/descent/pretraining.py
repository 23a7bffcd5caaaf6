"""Before training: measure the initial model on some examples, by short trial fits on copies."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from thalweg import optim
from thalweg.descent.problem import Problem, start_model
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.their_objects import as_found
from thalweg.landscape.drifting_statistics import drifting_statistics
from thalweg.landscape.initial_figures import (
    MOST_BYTES,
    RATES,
    Fit,
    InitialFigures,
    Repeats,
    alike,
    ample,
    constant_loss,
    extent,
    goal,
    measure_initial,
    out_of_reach,
    reaction,
    repeats,
    scales,
    target_misfits,
    target_of,
)
from thalweg.landscape.objective import make_gradients_dense
from thalweg.records.diagnosis import Diagnosis
from thalweg.sampling import (
    Batches,
    Draw,
    ItemSource,
    StreamSource,
    TensorSource,
    count_examples,
    iterate_once,
    mix,
)
from thalweg.sampling.opening import FIRST_BATCH_SIZE, first_batch
from thalweg.sampling.sources import leaves, seed_all, to_device, tree_map
from thalweg.watch.findings import findings_before_training

STEPS = 100  # at most, of each trial fit
SECONDS = 8.0
# Of the sample that shows whether learning generalises: the examples of a batch, and the most and fewest batches; more where a
# user's loader makes smaller ones.
EXAMPLES, MOST_BATCHES, FEWEST_BATCHES = 64, 16, 8
EPOCHS = 25  # over the half of the sample that is learnt from
GENERALISES = 0.9  # share of the constant predictor's loss: a lower loss on held-out examples ends the search
PUSH_RATE = 0.1  # learning rate that moves a bias by ten in a hundred steps: far into where sigmoid and tanh are flat
NEAR = 0.1  # largest mean distance from a bound of outputs that were pushed against it
BOUNDS = (0.0, 1.0)  # absolute values that bound the outputs of ReLU, sigmoid and tanh
T = TypeVar("T")
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def check_task(problem: Problem, seed: int = 0, seconds: float = SECONDS) -> list[Diagnosis]:
    """Give what is wrong with a task before training, gravest first. Each part of the measuring takes at most `seconds`.

    Raises DataError where no step could be taken on the batches of the user's loader.
    """
    problem.check_last_batch()
    return findings_before_training(measure_before_training(problem, seed, seconds))


def findings_on_opening(problem: Problem) -> list[Diagnosis]:
    """Give what shows without measuring anything: opening the task has found it."""
    return findings_before_training(InitialFigures(math.nan, reduction=_reduction(problem)))


def _reduction(problem: Problem) -> str:
    """Give the kind of reduction of the training loss, or of the validation loss where its weights are wrong."""
    kinds = [objective.reduction.kind for objective in (problem.objective, problem.validation_objective)]
    return "misweighted" if "misweighted" in kinds else kinds[0]


def measure_before_training(problem: Problem, seed: int = 0, seconds: float = SECONDS) -> InitialFigures:
    """Measure the initial model: loss, gradients, reaction, scale, whether one batch can be fitted and learning generalises.

    Fitting one batch (with finding the bounds of the outputs), drawing a sample and learning from it take at most `seconds`
    each; what is not done by then is not judged. Nor is what fails: a task that trains may still refuse what is tried here, such
    as a batch of other examples, and that is no fault of its.
    """
    with preserve_process_state(), rng_lock, as_found(problem.task):
        problem = problem.with_own_loss()
        drawn = _small_batch(problem, seed)
        batch = to_device(drawn.parts[0], problem.device)
        other = unless_it_fails(lambda: _other_batch(problem, drawn, seed), None)
        figures = unless_it_fails(
            lambda: measure_initial(problem.objective, start_model(problem, seed), batch, other),
            InitialFigures(math.nan),
        )
        figures = replace(figures, reduction=_reduction(problem))
        until = time.perf_counter() + seconds
        figures, fitted_range = unless_it_fails(
            lambda: _with_fit(problem, figures, drawn, other, seed, until), (figures, None)
        )
        figures = replace(
            figures,
            bounds=unless_it_fails(lambda: _bounds(problem, figures, batch, seed, fitted_range, until), (None, None)),
            repeats=_repeats(problem),
            drifting_statistics=unless_it_fails(lambda: _drifting(problem, batch, seed), ()),
        )
        sample = unless_it_fails(lambda: _sample(problem, seed, seconds), [])
        figures = replace(
            figures, held_out=unless_it_fails(lambda: _generalisation(problem, sample, seed, seconds), None)
        )
        if problem.task.step:
            return figures
        return unless_it_fails(lambda: _with_data(problem, figures, sample or _all_examples(problem), batch), figures)


def unless_it_fails(measure: Callable[[], T], unknown: T) -> T:
    """Give what is measured, or `unknown` where that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training says again what it warns of
            return measure()
    except Exception:
        return unknown


def _drifting(problem: Problem, batch: Any, seed: int) -> tuple[str, ...]:
    """Name frozen layers whose statistics move in a step, which may itself put them into evaluation mode."""
    model = start_model(problem, seed)
    if not drifting_statistics(model):
        return ()
    with problem.objective.gradient_mode():
        problem.objective.loss(model, batch)
    return drifting_statistics(model)


def _with_data(problem: Problem, figures: InitialFigures, batches: list[Any], batch: Any) -> InitialFigures:
    """Add figures of many examples, or of one batch where the data are not in `batches`."""
    parts = batches or [batch]
    targets = [target_of(problem.objective, part, figures.compares) for part in parts]
    found = target_misfits(problem.objective, start_model(problem, 0), batches) if batches else ()
    return replace(
        figures,
        misfits=found or figures.misfits,
        scale=scales(problem.objective, parts, figures.compares),
        out_of_reach=out_of_reach(targets, figures.bounds),
        target_alike=alike(targets) and _takes_target(problem, batch) if batches else None,
    )


def _takes_target(problem: Problem, batch: Any) -> bool:
    """Tell whether the loss depends on the target: with one of inputs alone (of triplets, say) it only stands in its place."""
    objective = problem.objective
    loss = cast("Callable[[Any, Any], Any]", objective.task.loss)
    try:
        with objective.gradient_mode():
            output, target = objective.outputs(start_model(problem, 0), batch)
            seed_all(0)
            first = float(loss(output, target))
            seed_all(0)
            return first != float(loss(output, target + 1))
    except Exception:
        return True  # it does not take other targets


def _small_batch(problem: Problem, seed: int) -> Draw:
    """Draw a few examples from all over the data, which may lie sorted; of a stream its first batch."""
    if isinstance(problem.train, StreamSource):
        batch = first_batch(problem.train, problem.device)
        return Draw([batch], [count_examples(batch)], None)
    batches = Batches(problem.train, _probe_size(problem, FIRST_BATCH_SIZE), seed=seed)
    try:
        return batches.draw()
    finally:
        batches.close()


def _probe_size(problem: Problem, wanted: int) -> int:
    """Give how many examples to put together: no more than a user's loader does, and as many where the model takes no fewer."""
    source, count = problem.train, problem.count or wanted
    own = source.own_batches if isinstance(source, ItemSource) else None
    if own is None or own.size <= wanted:
        return min(count, wanted if own is None else own.size)
    try:
        with problem.objective.gradient_mode():
            problem.objective.loss(start_model(problem, 0), first_batch(source, problem.device, wanted, own=False))
    except Exception:
        return min(count, own.size)
    return min(count, wanted)


def _other_batch(problem: Problem, drawn: Draw, seed: int) -> Any:
    """Give a batch of other examples in the same places, None where there is none.

    Examples are exchanged before they are put together: a batch that is packed, sorted or one graph cannot be rearranged.
    """
    source, size = problem.train, drawn.sizes[0]
    if isinstance(source, TensorSource):
        return tree_map(lambda leaf: leaf.roll(1, 0) if isinstance(leaf, Tensor) else leaf, drawn.parts[0])
    if isinstance(source, StreamSource):
        batches = iterate_once(source, FIRST_BATCH_SIZE)
        next(batches)
        other, _ = next(batches, (None, 0))
        return to_device(other, problem.device)
    if len(source) < 2 * size:
        return None
    batches = Batches(source, size, seed=seed)
    try:
        batches.draw()
        return to_device(batches.draw().parts[0], problem.device)
    finally:
        batches.close()


def _sample(problem: Problem, seed: int, seconds: float) -> list[object]:
    """Draw some batches from all over the data; fewer where reading is slow, none where there are too few examples."""
    size = _probe_size(problem, EXAMPLES)
    fewest, most = (max(2, count * EXAMPLES // size) for count in (FEWEST_BATCHES, MOST_BATCHES))
    if problem.count is not None and problem.count < fewest * size:
        return []
    batches = Batches(problem.train, size, seed=seed, drop_last=True)
    sample: list[object] = []
    started = time.perf_counter()
    try:
        while len(sample) < min(most, batches.steps_per_epoch or most):
            sample.append(to_device(batches.draw().parts[0], problem.device))
            if time.perf_counter() - started > seconds / 2:
                break
    finally:
        batches.close()
    return sample if len(sample) >= fewest else []


def _all_examples(problem: Problem) -> list[object]:
    """Give all examples of a small data set as one batch, nothing for a stream."""
    if problem.count is None or problem.count >= FEWEST_BATCHES * EXAMPLES:
        return []
    return [batch for batch, _ in iterate_once(problem.train, problem.count, own=False)]


def _repeats(problem: Problem) -> Repeats | None:
    """Look for training rows in the validation data, where both are in memory."""
    if not isinstance(problem.train, TensorSource) or not isinstance(problem.validation, TensorSource):
        return None
    train, validation = problem.train, problem.validation
    if train.rows is None or validation.rows is None:
        return repeats(leaves(train.nest), leaves(validation.nest))
    if sum(leaf.nbytes for leaf in leaves(train.nest)) > MOST_BYTES:  # of a part the rows are copied
        return None
    found = repeats(train.tensors(), validation.tensors())
    own = [] if found is None else [(int(validation.rows[i]), int(train.rows[j])) for i, j in found.rows]
    return found and found._replace(rows=tuple(own))


def _generalisation(problem: Problem, sample: list[object], seed: int, seconds: float) -> tuple[float, float] | None:
    """Learn from half of the sample, and give the best loss on the other half with the constant predictor's loss there.

    A larger rate is tried where a usual one gets nowhere. None where the constant predictor's loss is not known, the sample is
    too small or time ran out.
    """
    half = len(sample) // 2
    if not half or problem.task.step is not None:
        return None
    learnt, held_out, until = sample[:half], sample[half:], time.perf_counter() + seconds
    best, constant = math.inf, math.nan
    for rate in RATES[:2]:
        model = start_model(problem, seed)
        optimizer = _optimizer(model, rate)
        for epoch in range(EPOCHS):
            if not _train_epoch(problem, model, optimizer, learnt, mix(seed, epoch), until):
                return None
            known = _held_out(problem, model, held_out)
            if known is None:
                return None
            best, constant = min(best, known[0]), known[1]
            if best < GENERALISES * constant:
                return best, constant
    return best, constant


def _train_epoch(
    problem: Problem, model: nn.Module, optimizer: optim.Optimizer, batches: list[object], seed: int, until: float
) -> bool:
    """Take a step on each batch; False where time ran out."""
    model.train()
    for number, batch in enumerate(batches):
        seed_all(mix(seed, number))
        optimizer.zero_grad(set_to_none=True)
        loss, _ = problem.objective.loss(model, batch)
        loss.backward()
        make_gradients_dense(model.parameters())
        optimizer.step()
        if time.perf_counter() > until:
            return False
    return True


def _held_out(problem: Problem, model: nn.Module, batches: list[object]) -> tuple[float, float] | None:
    """Give the mean loss of the batches with the constant predictor's, None where that is not known."""
    objective = problem.objective
    model.eval()
    losses, known = list[float](), list[float]()
    with objective.gradient_mode():
        for batch in batches:
            constant = constant_loss(objective, *objective.outputs(model, batch))
            if constant is None:
                return None
            known.append(constant[0])
            losses.append(float(objective.loss(model, batch)[0]))
    return sum(losses) / len(losses), sum(known) / len(known)


def _optimizer(model: nn.Module, rate: float = RATES[0]) -> optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return optim.build("adamw", parameters, lr=rate, clip_norm=1.0, on_nonfinite="skip")


def _without_dropout(problem: Problem, seed: int) -> nn.Module:
    model = start_model(problem, seed)
    for module in model.modules():
        if isinstance(module, _DROPOUTS):
            module.p = 0.0
    return model.train()


def _with_fit(
    problem: Problem, figures: InitialFigures, drawn: Draw, other: Any, seed: int, until: float
) -> tuple[InitialFigures, tuple[float, float] | None]:
    """Add how a few examples of the batch were fitted, and give the range of the outputs after that."""
    batch = to_device(drawn.parts[0], problem.device)
    part, can_judge = _fittable_part(problem, drawn, seed)
    tries, model = _tries(problem, part, seed, until)
    fitted_reaction = reaction(problem.objective, model, batch, other)
    if figures.reaction is not None and fitted_reaction is not None:
        # A last layer that starts at zero reacts to its input only once it is fitted.
        figures = replace(figures, reaction=max(figures.reaction, fitted_reaction))
    if can_judge and tries and (tries[-1].done or len(tries) == len(RATES)):
        figures = replace(figures, fit=min(tries, key=lambda tried: tried.reached))
    if problem.task.step is not None:
        return figures, None
    with problem.objective.gradient_mode():
        return figures, extent(problem.objective.outputs(model, batch)[0])


def _tries(problem: Problem, batch: Any, seed: int, until: float) -> tuple[list[Fit], nn.Module]:
    """Fit a batch at one rate after the other until one does, or time has run out; give the last model too."""
    tries: list[Fit] = []
    while True:
        model = _without_dropout(problem, seed)
        tried = _fit(problem, model, batch, seed, RATES[len(tries)], until)
        tries += [tried] if tried else []
        if tried is None or tried.done or len(tries) == len(RATES):
            return tries, model


def _fittable_part(problem: Problem, drawn: Draw, seed: int) -> tuple[Any, bool]:
    """Give as many examples as the model has parameters per output, and whether it can fit any so many.

    Even a linear model can fit so many: with n + 1 parameters per output it passes through any n + 1 points. Of data in memory
    they are of different targets.
    """
    batch = to_device(drawn.parts[0], problem.device)
    if problem.task.step is not None:
        return batch, True
    model = start_model(problem, seed).eval()
    with problem.objective.gradient_mode():
        output, target = problem.objective.outputs(model, batch)
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or not target.ndim or not target.numel():
        return batch, True
    parameters, count = sum(p.numel() for p in model.parameters() if p.requires_grad), drawn.sizes[0]
    wanted = max(2, parameters * count // output.numel())
    if wanted >= count:
        return batch, True
    if parameters * count < 2 * target.numel() or drawn.indices is None:
        return batch, False
    if isinstance(problem.train, TensorSource):
        chosen = drawn.indices[_different(target, wanted).to(drawn.indices.device)]
        return problem.train.take(chosen), True
    few = drawn.indices[torch.linspace(0, count - 1, wanted).round().long()]
    loaded = cast(ItemSource, problem.train).load(iter([[(0, index) for index in few.tolist()]]), seed, 0)
    return to_device(next(loaded), problem.device), True


def _different(target: Tensor, count: int) -> Tensor:
    """Choose examples from the first one to the one whose target is farthest from its, evenly.

    >>> _different(torch.tensor([3, 3, 9, 3, 5]), 3)
    tensor([0, 3, 2])
    """
    values = target if target.is_complex() else target.double()
    order = (values - values[:1]).abs().reshape(len(target), -1).sum(1).argsort(stable=True)
    return order[torch.linspace(0, len(target) - 1, count).round().long().to(order.device)]


def _fit(problem: Problem, model: nn.Module, batch: Any, seed: int, rate: float, until: float) -> Fit | None:
    """Train on one batch at one rate, and give the loss reached; None where time ran out first."""
    optimizer = _optimizer(model, rate)
    known = None
    if problem.task.step is None:
        with problem.objective.gradient_mode():
            known = constant_loss(problem.objective, *problem.objective.outputs(model, batch))
    constant = known[0] if known else None
    size = max((len(leaf) for leaf in leaves(batch) if leaf.ndim), default=1)
    started = best = math.nan
    step = 0
    for step in range(1, STEPS + 1):
        optimizer.zero_grad(set_to_none=True)
        seed_all(mix(seed, step))
        loss, _ = problem.objective.loss(model, batch)
        loss.backward()
        make_gradients_dense(model.parameters())
        optimizer.step()
        value = float(loss.detach())
        if step == 1 and not math.isfinite(value):
            return None  # these few examples have no target that counts
        started, best = (value, value) if step == 1 else (started, min(best, value))
        if 0 < best < ample(started, constant):
            break
        if time.perf_counter() > until:
            return None
    return Fit(started, best, goal(started, constant), ample(started, constant), constant, size, step, rate)


def _bounds(
    problem: Problem,
    figures: InitialFigures,
    batch: Any,
    seed: int,
    fitted_range: tuple[float, float] | None,
    until: float,
) -> tuple[float | None, float | None]:
    """Give the bounds of the outputs of a copy of the model that is trained to give small, and large ones; None: no bound.

    Only outputs that were within [-1, 1], or on one side of it, before and after the fit are tried: all others have no such
    bounds.
    """
    if figures.compares in ("", "log-probabilities") or figures.output_range is None or fitted_range is None:
        return None, None
    (least, most), size = zip(figures.output_range, fitted_range, strict=True), max(BOUNDS)
    low = _pushed(problem, batch, seed, -1.0, until) if min(least) >= -size else None
    high = _pushed(problem, batch, seed, 1.0, until) if max(most) <= size else None
    return (None, None) if low == high else (low, high)  # equal bounds: the outputs do not move at all


def _pushed(problem: Problem, batch: Any, seed: int, sign: float, until: float) -> float | None:
    """Train a copy to give the least outputs it can (`sign` -1), or the largest (1): the bound where they all end, if any."""
    model = _without_dropout(problem, seed)
    optimizer = _optimizer(model, PUSH_RATE)
    farthest, mean = -math.inf, 0.0
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        seed_all(mix(seed, step))
        output = sign * problem.objective.outputs(model, batch)[0]
        farthest, mean = max(farthest, float(output.detach().max())), float(output.detach().mean())
        if not farthest <= max(BOUNDS) or time.perf_counter() > until or not output.requires_grad:
            return None
        (-output.mean()).backward()
        make_gradients_dense(model.parameters())
        optimizer.step()
    ends = [size for size in BOUNDS if farthest <= size + 1e-6 and mean >= size - NEAR]
    return (sign * ends[0] or 0.0) if ends else None  # `or`: 0.0 instead of -0.0
