"""The batch size: time, memory and gradient noise of each candidate are measured, and a stated rule chooses one."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.problem import Problem
from thalweg.descent.settle import with_fitting_batches
from thalweg.descent.timing import time_steps
from thalweg.errors import DataError
from thalweg.landscape.noise_scale import NoiseScale
from thalweg.records.plan import Evidence, Plan
from thalweg.records.request import Request
from thalweg.sampling import StreamSource, smallest_part
from thalweg.sampling.reading import describe_error
from thalweg.tuning.gradient_noise import PARTS, measure_noise_scale
from thalweg.tuning.memory import Memory, measure_memory
from thalweg.tuning.priors import usual_rate

SMALLEST, LARGEST = 8, 1 << 16
SHARE_OF_DATA = 5  # an epoch has at least so many steps
FEWEST_STEPS = 5000  # of a run: a larger batch that leaves fewer is not worth its speed
RISING = 1.05  # factor of examples per second between two sizes, below which the larger one is no faster
NOISE_GROWTH = 4.0  # by which the noise scale may still grow after the first steps
NOISE_FLOOR = 16.0  # examples: a noise scale that is smaller in the first steps grows
SLOWER, MOMENT = 1.5, 3.0  # a batch that makes a run so many times longer must not make it longer than so many seconds
FEW_STEPS = 500  # for the sake of which a run may take longer all the same
SHARE, SECONDS = 0.1, (0.3, 3.0)  # of the run that measuring may take, and the least and the most of it


class Measured(NamedTuple):
    """One candidate.

    Arguments:
        batch_size: in examples.
        seconds: per step; None where memory does not hold it, or it fails.
        bytes: that a run is expected to need; None: not known.
        error: why it fails, where that is not for memory.
    """

    batch_size: int
    seconds: float | None
    bytes: float | None = None
    error: str = ""

    @property
    def examples_per_second(self) -> float:
        """How fast it is; 0 where it does not run."""
        return self.batch_size / self.seconds if self.seconds else 0.0


class Measurements(NamedTuple):
    """What was found of the candidates."""

    candidates: tuple[Measured, ...]
    memory: Memory | None = None
    noise: NoiseScale | None = None


def candidates(count: int | None) -> list[int]:
    """Give powers of two from 8 on, at most a fifth of the data, so that an epoch has several steps.

    >>> candidates(1437), candidates(30), candidates(5), candidates(None)[-1]
    ([8, 16, 32, 64, 128, 256], [8], [5], 65536)
    """
    powers = [2**k for k in range(int(math.log2(SMALLEST)), int(math.log2(LARGEST)) + 1)]
    if count is None:
        return powers
    return [p for p in powers if p <= max(SMALLEST, count // SHARE_OF_DATA) and p <= count] or [count]


def measure(problem: Problem, plan: Plan, request: Request) -> Measurements:
    """Measure memory, then the time of a step at each candidate that memory holds until larger ones are no faster, then noise.

    All of it takes about a tenth of the run, at least 0.3 and at most 3 seconds where steps are short.

    Raises what the smallest candidate raises where none can be trained.
    """
    sizes, device = candidates(problem.count), problem.device
    first = _try(problem, plan.replace(batch_size=sizes[0]), patience=SECONDS[0] / 4)
    allowed = _allowed_seconds(first, problem, request)
    memory = measure_memory(
        problem, plan, sizes, request.memory_bytes, allowed / 2, only_if_close=allowed == SECONDS[0]
    )
    started = time.perf_counter()
    found, best, flat = list[Measured](), 0.0, 0  # flat: sizes in a row that were no faster
    for number, size in enumerate(sizes):
        needed = memory.needed(size)
        if not memory.fits(size):
            found.append(Measured(size, None, needed))
            break
        if size in memory.failing:
            found.append(Measured(size, None, needed, memory.failing[size]))
            continue
        tried = first if number == 0 and first.seconds is None else None
        tried = tried or _try(problem, plan.replace(batch_size=size), patience=allowed / 4)
        found.append(tried._replace(bytes=needed))
        if tried.seconds is None and not tried.error:
            break
        flat = 0 if tried.examples_per_second >= RISING * best else flat + 1
        best = max(best, tried.examples_per_second)
        if flat == 2:
            break
        if time.perf_counter() - started > allowed or (tried.seconds or 0.0) > allowed / 4:
            break
    if all(one.error for one in found):
        time_steps(problem, with_fitting_batches(problem, plan.replace(batch_size=sizes[0])), count=1)  # raises
    release(device)
    return Measurements(tuple(found), memory, _measure_noise(problem, plan, request, found, allowed))


def _allowed_seconds(first: Measured, problem: Problem, request: Request) -> float:
    """Give the seconds that measuring may take: a share of the run, as far as a first timing tells how long it is."""
    run = request.seconds
    if first.seconds and request.steps is not None:
        run = request.steps * first.seconds
    elif first.seconds and request.epochs is not None and problem.count is not None:
        run = request.epochs * problem.count / first.batch_size * first.seconds
    return min(max(SHARE * (run or math.inf), SECONDS[0]), SECONDS[1])


def _try(problem: Problem, plan: Plan, patience: float) -> Measured:
    """Time steps of a candidate; one that fails is no ceiling, as a larger one may not."""
    size = plan.batch_size or 0
    try:
        timed = time_steps(problem, with_fitting_batches(problem, plan), count=5, patience=patience)
    except DataError:
        raise  # by no fault of the size
    except Exception as error:
        return Measured(size, None, error="" if out_of_memory(error) else describe_error(error))
    return Measured(size, timed.seconds if timed.fits else None)


def _measure_noise(
    problem: Problem, plan: Plan, request: Request, found: list[Measured], allowed: float
) -> NoiseScale | None:
    """Measure the gradient noise scale with the largest batch up to 64 that fits, where batches come into question at all."""
    sizes = [one.batch_size for one in found if one.seconds and 2 * PARTS <= one.batch_size <= 64]
    if len(found) < 2 or not sizes:
        return None
    size = sizes[-1]
    rate = request.fixed.get("learning_rate") or usual_rate(plan.rule, plan.steps)
    plan = with_fitting_batches(problem, plan.replace(batch_size=size, learning_rate=rate))
    if problem.needs_two_examples and smallest_part(size, size, PARTS) < 2:
        return None
    steps = request.steps
    if steps is None and request.epochs is not None and problem.count is not None:
        steps = round(request.epochs * problem.count / size)
    try:
        return measure_noise_scale(problem, plan, steps or FEWEST_STEPS, allowed)
    except Exception:  # parts of a batch may fail where the whole does not
        return None


def choose(found: Measurements, request: Request, count: int | None) -> tuple[int, Evidence]:
    """Give the size that serves the budget best, of those that memory holds.

    Of a budget in epochs, smaller batches make more updates: the largest that leaves 5,000 of them is taken, else the smallest
    that was measured; but none so large that its gradients would hardly be noisy (four times the noise scale), and none that
    makes a run of more than three seconds half as long again as a larger one that leaves 500 updates. At equal epochs and a
    rate searched for each size (`bench/tuning/batches.py`: twelve tasks, two seeds, 12 to 5,600 steps) that gives a loss of 1.03
    of the best size's in geometric mean; batches of at least 32, or 16 or 8 where those left under 200 updates, gave 1.07; 32
    for all 1.19. In all of these it takes batches of 8: hardly any leaves 5,000 updates, and none takes three seconds. So
    what they show is that short runs want small batches; the 5,000, the noise scale's limit and that of time are judgement, and
    the last one costs loss by intent, for time.

    Of a budget in steps or seconds, the least time to a target is taken: a target needs 1 + noise scale / size as many steps as
    with batches of all examples (arXiv:1812.06162). At equal seconds (eight tasks, two seeds) that gives 1.02 to 1.05, by how
    the noise scale is measured, where it counts as 16 at least: in the first steps it is smaller than later, and without that
    it gave 1.02 to 1.10. The 16 were chosen on these very runs, against no floor and no other value. The smallest size at least
    half as fast, in examples per second, as the fastest gave 1.04 (of those from 32 on), and is taken where the noise scale is
    not known.
    """
    fitting = [one for one in found.candidates if one.seconds is not None]
    if not fitting:
        chosen, reason = (
            found.candidates[0],
            "memory does not hold the smallest size measured: its steps are cut into parts",
        )
    elif request.epochs is not None and count is not None:
        chosen, reason = _for_epochs(fitting, found.noise, request.epochs * count)
    else:
        chosen, reason = _for_time(fitting, found.noise)
    return chosen.batch_size, Evidence("measured", reason, _figures(found))


def _for_epochs(fitting: list[Measured], noise: NoiseScale | None, examples: float) -> tuple[Measured, str]:
    """Choose for a budget of so many examples."""
    leaving = [one for one in fitting if examples / one.batch_size >= FEWEST_STEPS]
    useful = [one for one in leaving if noise is None or one.batch_size <= NOISE_GROWTH * max(noise.high, NOISE_FLOOR)]
    chosen = (useful or leaving or fitting)[-1 if useful else 0]
    reason = f"the largest of those measured that leaves {FEWEST_STEPS:,} updates"
    if useful and useful != leaving:
        reason = f"the largest that is no more than {NOISE_GROWTH:g} times the gradient noise scale"
    elif not leaving:
        reason = f"the smallest of those measured: none leaves {FEWEST_STEPS:,} updates in this budget"
    for larger in fitting[fitting.index(chosen) + 1 :]:
        seconds, fewer = (examples / one.examples_per_second for one in (chosen, larger))
        if seconds > max(MOMENT, SLOWER * fewer) and examples / larger.batch_size >= FEW_STEPS:
            chosen, reason = larger, f"smaller ones make the run {SLOWER:g} times as long or longer"
    return chosen, reason


def _for_time(fitting: list[Measured], noise: NoiseScale | None) -> tuple[Measured, str]:
    """Choose for the least time to a target."""
    if noise is None or not noise.is_known:
        fastest = max(one.examples_per_second for one in fitting)
        chosen = next(one for one in fitting if one.examples_per_second >= 0.5 * fastest)
        reason = "the smallest of those measured that is at least half as fast, in examples per second, as the fastest"
        return chosen, reason
    scale = max(noise.value, NOISE_FLOOR)

    def time_to_target(one: Measured) -> float:
        return (1 + scale / one.batch_size) * (one.seconds or math.inf)

    law = f"1 + {scale:.3g} / size times the least steps (arXiv:1812.06162)"
    return min(fitting, key=time_to_target), f"the least time to a target, which needs {law}"


def _figures(found: Measurements) -> dict[str, Any]:
    """Give what was measured, for the plan."""
    figures: dict[str, Any] = {
        "batch_sizes": [one.batch_size for one in found.candidates],
        "examples_per_second": [round(one.examples_per_second) for one in found.candidates],
    }
    if all(one.bytes is not None for one in found.candidates):
        figures["megabytes"] = [_megabytes(one.bytes or 0.0) for one in found.candidates]
    errors = {str(one.batch_size): one.error for one in found.candidates if one.error}
    if errors:
        figures["failed"] = errors
    if found.memory is not None:
        figures |= memory_figures(found.memory)
    if found.noise is not None and (found.noise.is_known or found.noise.low > 0):
        value, low, high = (float(f"{figure:.3g}") for figure in found.noise)
        figures |= {"noise_scale": [value, low, high]} if found.noise.is_known else {"noise_scale_above": low}
    return _tables_last(figures)


def memory_of(problem: Problem, plan: Plan, request: Request) -> Memory | None:
    """Measure the memory of steps of the plan's own batch size, where it may not be enough; None where steps cannot be cut."""
    size = plan.batch_size or problem.count
    if size is None or (isinstance(problem.train, StreamSource) and problem.train.batch_size is not None):
        return None
    sizes = sorted({max(1, size // 16), max(1, size // 4), size})
    return measure_memory(problem, plan, sizes, request.memory_bytes, SECONDS[1], only_if_close=True)


def memory_figures(memory: Memory) -> dict[str, Any]:
    """Give what was found of memory, for the plan."""
    fixed = {name: _megabytes(fixed) for name, (fixed, _) in memory.parts.items() if fixed}
    per_example = {name: float(f"{each / 1e3:.3g}") for name, (_, each) in memory.parts.items() if each}
    figures: dict[str, Any] = {"memory": memory.how, "fixed_megabytes": fixed, "kilobytes_per_example": per_example}
    if memory.room is not None:
        figures |= {"memory_limit_megabytes": _megabytes(memory.budget), "memory_limit": memory.room.what}
    return _tables_last(figures)


def _tables_last(figures: dict[str, Any]) -> dict[str, Any]:
    """Order figures as a plan's file has them, so that a plan that was read again shows them in the same order."""
    return dict(sorted(figures.items(), key=lambda entry: isinstance(entry[1], dict)))


def _megabytes(count: float) -> float:
    return float(f"{count / 1e6:.3g}") if count < 1e9 else float(round(count / 1e6))


def parts(problem: Problem, plan: Plan, memory: Memory) -> tuple[int, Evidence] | None:
    """Give the parts into which steps are to be cut so that memory holds each; None where it holds a whole one.

    The effective batch stays; where even a single example is too much, there are as many parts as examples.
    """
    size = plan.batch_size or problem.count
    if size is None or memory.fits(size):
        return None
    least = 2 if problem.needs_two_examples else 1
    count = next((n for n in range(2, size // least + 1) if memory.fits(math.ceil(size / n))), max(1, size // least))
    while count > 1 and smallest_part(size, size, count) < least:
        count -= 1
    of_part = math.ceil(size / count)
    limit = memory.room.what if memory.room is not None else "memory"
    whole, part = (f"{_megabytes(memory.needed(examples)):,g} MB" for examples in (size, of_part))
    reason = (
        f"a step of {size:,} examples needs {whole}, and {limit} allows {_megabytes(memory.budget):,g} MB;"
        f" a part of {of_part:,} needs {part}"
    )
    return count, Evidence("measured", reason, memory_figures(memory))
