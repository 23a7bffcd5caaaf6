"""The survey: where on the loss surface a descent ended, in figures, and slices through it."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg.errors import RunError
from thalweg.formatting import format_count
from thalweg.records import files, sealed_json
from thalweg.records.kinds import anything, check, count, flag, listing, number, optional, table, text
from thalweg.records.paths import as_path

Array = npt.NDArray[np.float64]
FORMAT = 1


@dataclass(frozen=True)
class Walk:
    """Where a descent was in a plane.

    Attributes:
        name: of the run.
        points: of shape (count, 2): coordinates in the plane, in the order of the steps.
        steps: after which the weights were there.
    """

    name: str
    points: Array
    steps: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give it as values of JSON."""
        return {"name": self.name, "points": self.points.tolist(), "steps": list(self.steps)}

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> Walk:
        """Read what `to_dict` gave. Raises ValueError, TypeError or KeyError for anything else."""
        check(entries, WALK, tuple(WALK))
        points = np.array(entries["points"], np.float64).reshape(-1, 2)
        if len(points) != len(entries["steps"]):
            raise ValueError(f"a path has {len(points)} points and {len(entries['steps'])} steps")
        return Walk(entries["name"], points, tuple(entries["steps"]))


WALK = {"name": text, "points": listing(listing(number)), "steps": listing(count)}


@dataclass(frozen=True)
class Slice:
    """Losses along a line, or over a plane, through the point where the descent ended, which is at 0.

    Attributes:
        name: such as "random directions".
        axes: what each coordinate is, one or two texts.
        x, y: coordinates, in lengths of the direction; `y` is empty for a line.
        losses: of shape (len(x),) or (len(y), len(x)); infinite where the loss is no number.
        measured: how many of them were measured; the others are predicted from these.
        error: of predicted losses, relative to their range.
        walks: where descents were in the plane; empty where that is not drawn.
        shares: of the variance of their points, that each axis explains.
    """

    name: str
    axes: tuple[str, ...]
    x: Array
    y: Array
    losses: Array
    measured: int
    error: float = 0.0
    walks: tuple[Walk, ...] = ()
    shares: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give it as values of JSON."""
        return {
            "name": self.name,
            "axes": list(self.axes),
            "x": self.x.tolist(),
            "y": self.y.tolist(),
            "losses": self.losses.tolist(),
            "measured": self.measured,
            "error": self.error,
            "walks": [each.to_dict() for each in self.walks],
            "shares": list(self.shares),
        }

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> Slice:
        """Read what `to_dict` gave. Raises ValueError, TypeError or KeyError for anything else."""
        check(entries, SLICE, tuple(SLICE))
        x, y = np.array(entries["x"], np.float64), np.array(entries["y"], np.float64)
        losses = np.array(entries["losses"], np.float64)
        if not len(x) or len(entries["axes"]) != (2 if len(y) else 1):
            raise ValueError(f"a slice has {len(entries['axes'])} axes for {len(x)} by {len(y)} coordinates")
        if losses.shape != ((len(y), len(x)) if len(y) else (len(x),)):
            raise ValueError(f"a slice has {losses.shape} losses for {len(x)} by {len(y)} coordinates")
        return Slice(
            entries["name"],
            tuple(entries["axes"]),
            x,
            y,
            losses,
            entries["measured"],
            entries["error"],
            tuple(Walk.from_dict(each) for each in entries["walks"]),
            tuple(entries["shares"]),
        )


SLICE = {
    "name": text,
    "axes": listing(text),
    "x": listing(number),
    "y": listing(number),
    "losses": listing(anything),
    "measured": count,
    "error": number,
    "walks": listing(table(anything)),
    "shares": listing(number),
}


@dataclass(frozen=True)
class Course:
    """What the loss surface was like at some points of a run, with one value for each.

    Attributes:
        steps: after which the weights were there, ascending.
        losses: there.
        sharpness: the largest eigenvalue of the Hessian. `residuals`: how far each may be off.
        rates: the learning rate of the step that led there, at the start of the first one; None where it is not known.
        edges: the curvature at which the rule becomes unstable at that rate; None where there is none.
        preconditioned: the largest curvature in the measure of a rule that divides gradients by their usual size: the curvature
            divided likewise. None where it is not known.
        temperatures: what rule, rate and batch make of the gradients' noise: the rate times `temperature_gain` over the examples
            of a step; 0 where each step saw all examples, None where the rule has none.
        scaled: whether the rule is of that kind: then `edges` are of `preconditioned`, else of `sharpness`.
    """

    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    sharpness: tuple[float, ...] = ()
    residuals: tuple[float, ...] = ()
    rates: tuple[float | None, ...] = ()
    edges: tuple[float | None, ...] = ()
    preconditioned: tuple[float | None, ...] = ()
    temperatures: tuple[float | None, ...] = ()
    scaled: bool = False

    def __len__(self) -> int:
        return len(self.steps)

    def with_point(self, scaled: bool, *values: float | None) -> Course:
        """Give the course with one point more: its values in the order of the attributes."""
        columns: dict[str, Any] = {
            name: (*column, value) for (name, column), value in zip(self.columns.items(), values, strict=True)
        }
        return Course(**columns, scaled=scaled)

    @property
    def columns(self) -> dict[str, Any]:
        """All lists, by name."""
        return {name: getattr(self, name) for name in COURSE if name != "scaled"}

    def to_dict(self) -> dict[str, Any]:
        """Give it as values of JSON."""
        return {name: list(column) for name, column in self.columns.items()} | {"scaled": self.scaled}

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> Course:
        """Read what `to_dict` gave. Raises ValueError, TypeError or KeyError for anything else."""
        check(entries, COURSE, tuple(COURSE))
        columns = {name: tuple(entries[name]) for name in COURSE if name != "scaled"}
        if len({len(column) for column in columns.values()}) > 1:
            raise ValueError("a course has another number of points in each of its lists")
        return Course(**columns, scaled=entries["scaled"])


COURSE = {
    "steps": listing(count),
    "losses": listing(number),
    "sharpness": listing(number),
    "residuals": listing(number),
    "rates": listing(optional(number)),
    "edges": listing(optional(number)),
    "preconditioned": listing(optional(number)),
    "temperatures": listing(optional(number)),
    "scaled": flag,
}


@dataclass(frozen=True)
class Basin:
    """How far one can go from where the descent ended before the loss has risen by an amount.

    Attributes:
        rise: that amount.
        random: distances along random directions, both ways along each, in lengths of the weights, filter by filter; infinite
            where it rises by less.
        curved: distances along the most curved direction, both ways, in lengths of all weights.
    """

    rise: float
    random: tuple[float, ...]
    curved: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give it as values of JSON."""
        return {"rise": self.rise, "random": list(self.random), "curved": list(self.curved)}

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> Basin:
        """Read what `to_dict` gave. Raises TypeError for anything else."""
        check(entries, BASIN, tuple(BASIN))
        return Basin(entries["rise"], tuple(entries["random"]), tuple(entries["curved"]))

    def __str__(self) -> str:
        """Say it in half a sentence."""
        middle, low, high = float(np.median(self.random)), min(self.random), max(self.random)
        text = f"the loss rises by {self.rise:.3g} at {middle:.2g} of the weights' length along random directions"
        text += f" ({low:.2g} to {high:.2g})"
        return f"{text}, at {min(self.curved):.2g} along the most curved one" if self.curved else text


BASIN = {"rise": number, "random": listing(number), "curved": listing(number)}


@dataclass(frozen=True)
class Survey:
    """What kind of place a descent reached, and what it looks like around it.

    All figures are of the training loss, without weight decay, in evaluation mode, over `examples` of the `total` training
    examples.

    Attributes:
        kind: "minimum", "saddle point", "maximum", "plateau", "slope", "edge of stability" or "cannot tell"; empty where the
            survey was stopped before that.
        reason: a sentence with the figures that decided.
        step: after which the weights are those of this place.
        loss, gradient_norm: there. `gradient_error` is the gradient's sampling error; 0 over all examples.
        index: directions in which the loss curves downwards; None where that was not asked. `index_is_exact`: there are no more.
        eigenvalues: of the Hessian, descending: the largest ones, then the smallest. `residuals`: how far each may be off.
        largest: how many of them are from the upper end.
        trace, trace_error: the sum of all eigenvalues, and the half-width of its interval of 95 %; NaN where not measured.
        density: eigenvalues and the share of each, from random directions, as two lists.
        layers: the largest eigenvalue within each layer's own weights, by name.
        along: curvature along certain directions, by name: "gradient"; "momentum" and "update", the rule's mean of gradients and
            the step that it would take next, where the run's last checkpoint is of this step; "preconditioned": the largest of
            the curvature divided by the usual size of each gradient, of a rule that divides so.
        edge: the curvature at which the rule would have become unstable, at the rate of that step; NaN where there is none.
        course: how sharp it was on the way; without points where the run kept none of its weights.
        basin: how wide the basin is at a tenth of the way back up; None where that was not measured.
        barriers: the height of the barrier that the noise of a step is worth, with its interval of 90 %, in units of the loss, by
            direction and rate: how likely it is crossed falls like exp(-height / this). Empty where it is not known.
        slices: lines and planes.
        figures, thresholds: by which the kind was decided.
        noise: the gradient noise scale at the end, in examples: "scale" with "low" and "high", its interval of 90 %, or
            "low" alone where it is too large to tell; empty where it was hardly measured.
        parameters, examples, total: how many; `total` is None for a stream.
        gradients, products, evaluations, seconds: what it cost.
        notes: sentences on what is to be known of it.
        complete: whether all that was asked for was measured.
    """

    kind: str = ""
    reason: str = ""
    step: int = 0
    loss: float = math.nan
    gradient_norm: float = math.nan
    gradient_error: float = 0.0
    index: int | None = None
    index_is_exact: bool = False
    eigenvalues: tuple[float, ...] = ()
    residuals: tuple[float, ...] = ()
    largest: int = 0
    trace: float = math.nan
    trace_error: float = math.nan
    density: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    layers: Mapping[str, float] = field(default_factory=dict[str, float])
    along: Mapping[str, float] = field(default_factory=dict[str, float])
    edge: float = math.nan
    course: Course = field(default_factory=Course)
    basin: Basin | None = None
    barriers: Mapping[str, tuple[float, float, float]] = field(default_factory=dict[str, "tuple[float, float, float]"])
    slices: tuple[Slice, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    thresholds: Mapping[str, float] = field(default_factory=dict[str, float])
    noise: Mapping[str, float] = field(default_factory=dict[str, float])
    parameters: int = 0
    examples: int = 0
    total: int | None = None
    gradients: int = 0
    products: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    complete: bool = True

    def __str__(self) -> str:
        """Say in some lines what was found."""
        lines = [
            f"After step {self.step:,}: {self.kind or 'stopped before the kind was known'}. {self.reason}".rstrip()
        ]
        of = "" if self.total is None or self.total == self.examples else f" of {self.total:,}"
        lines.append(
            f"loss {self.loss:.4g}, gradient norm {self.gradient_norm:.3g}"
            + (f" (sampling error {self.gradient_error:.2g})" if self.gradient_error else "")
            + f", over {self.examples:,}{of} training examples, {format_count(self.parameters, 'parameter')}"
        )
        if self.eigenvalues:
            top, bottom = self.eigenvalues[: self.largest], self.eigenvalues[self.largest :]
            words = [f"largest {', '.join(f'{value:.3g}' for value in top)}"] if top else []
            words += [f"smallest {', '.join(f'{value:.3g}' for value in bottom)}"] if bottom else []
            if math.isfinite(self.trace):
                error = f" ± {self.trace_error:.1g}" if self.trace_error > 0 else ""
                words.append(f"sum of all {self.trace:.3g}{error}")
            lines.append(f"eigenvalues of the Hessian: {'; '.join(words)}")
        if ways := {name: value for name, value in self.along.items() if name != "preconditioned"}:
            lines.append(f"curvature along the {', the '.join(f'{name} {value:.3g}' for name, value in ways.items())}")
        if math.isfinite(self.edge):
            own = self.along.get("preconditioned")
            measure = "" if own is None else f" in its own measure, in which the largest is {own:.3g}"
            lines.append(f"the rule becomes unstable at a curvature of {self.edge:.3g}{measure}")
        if self.layers:
            sharpest = sorted(self.layers.items(), key=lambda item: -item[1])[:3]
            lines.append(f"sharpest layers: {', '.join(f'{name} {value:.3g}' for name, value in sharpest)}")
        if self.basin is not None:
            lines.append(f"basin: {self.basin}")
        if self.barriers:
            worth = "; ".join(
                f"{value:.2g} ({low:.2g} to {high:.2g}) {name}" for name, (value, low, high) in self.barriers.items()
            )
            lines.append(f"at this batch size the noise is worth a barrier of about {worth}")
        lines += self.notes
        return "\n".join(lines)

    def to_json(self) -> str:
        """Give it as JSON, with its own sum at the end; see docs/survey.md."""
        entries = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "slices"}
        entries = {name: _plain(value) for name, value in entries.items()}
        return sealed_json.dump({"format": FORMAT, **entries, "slices": [each.to_dict() for each in self.slices]})

    @staticmethod
    def from_json(written: str) -> Survey:
        """Read what `to_json` gave. Raises ValueError, TypeError or KeyError for anything else."""
        entries = sealed_json.load(written)
        check(entries, {"format": count, "slices": listing(table(anything))}, ("format", "slices"))
        if entries.pop("format") != FORMAT:
            raise ValueError("it is of another version")
        slices = tuple(Slice.from_dict(each) for each in entries.pop("slices"))
        known = {name: value for name, value in entries.items() if name in KINDS}
        check(known, KINDS)
        lists = ("eigenvalues", "residuals", "notes")
        known |= {name: tuple(known[name]) for name in lists if name in known}
        if "density" in known:
            values, shares = known["density"]
            if len(values) != len(shares):
                raise ValueError(f"`density` has {len(values)} eigenvalues and {len(shares)} shares")
            known["density"] = (tuple(values), tuple(shares))
        if "course" in known:
            known["course"] = Course.from_dict(known["course"])
        if known.get("basin") is not None:
            known["basin"] = Basin.from_dict(known["basin"])
        if any(len(each) != 3 for each in known.get("barriers", {}).values()):
            raise ValueError("`barriers` has one that is no value with an interval")
        known |= {"barriers": {name: tuple(each) for name, each in known.get("barriers", {}).items()}}
        return Survey(**known, slices=slices)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON. Raises RunError where that fails."""
        target = as_path(path, "the file of a survey", "survey.json", RunError)
        try:
            files.replace(target, self.to_json().encode())
        except OSError as error:
            raise RunError(
                f"{target} cannot be written: {error.strerror}. Free some space or give another path."
            ) from error

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Survey:
        """Read what `save` wrote. Raises RunError where it cannot be read or is no survey."""
        source = as_path(path, "the file of a survey", "survey.json", RunError)
        try:
            return Survey.from_json(files.read(source).decode())
        except FileNotFoundError as error:
            raise RunError(f"There is no survey at {source}. Make one: thalweg survey RUN.") from error
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise RunError(
                f"{source} cannot be read as a survey ({error}). Make it again: thalweg survey RUN."
            ) from error

    def save_arrays(self, path: str | os.PathLike[str]) -> None:
        """Write coordinates and losses of the slices, the path and the eigenvalues as a NumPy `.npz` file.

        Raises RunError where that fails.
        """
        target = as_path(path, "the file of the arrays", "survey.npz", RunError)
        arrays: dict[str, Any] = {
            "eigenvalues": np.array(self.eigenvalues),
            "residuals": np.array(self.residuals),
            "density": np.array(self.density),
        }
        arrays |= {f"course/{name}": np.array(column, np.float64) for name, column in self.course.columns.items()}
        for place, each in enumerate(self.slices):
            arrays |= {f"slice{place}/{name}": getattr(each, name) for name in ("x", "y", "losses")}
            for number_of_walk, walk in enumerate(each.walks):
                arrays[f"slice{place}/walk{number_of_walk}"] = walk.points
                arrays[f"slice{place}/walk{number_of_walk}/steps"] = np.array(walk.steps, np.int64)
        try:
            np.savez_compressed(target, **arrays)
        except OSError as error:
            raise RunError(
                f"{target} cannot be written: {error.strerror}. Free some space or give another path."
            ) from error

    def figure(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the slices as a matplotlib `Figure`, which a notebook shows; with a path, write it there (.svg, .png, .pdf).

        Raises RunError where matplotlib is not installed, there are no slices, or the file cannot be written.
        """
        return importlib.import_module("thalweg.see.survey_figure").draw(self, path)


def _plain(value: Any) -> Any:
    if isinstance(value, Course | Basin):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return value


KINDS = {
    "kind": text,
    "reason": text,
    "step": count,
    "loss": number,
    "gradient_norm": number,
    "gradient_error": number,
    "index": optional(count),
    "index_is_exact": flag,
    "eigenvalues": listing(number),
    "residuals": listing(number),
    "largest": count,
    "trace": number,
    "trace_error": number,
    "density": listing(listing(number)),
    "layers": table(number),
    "along": table(number),
    "edge": number,
    "course": table(anything),
    "basin": optional(table(anything)),
    "barriers": table(listing(number)),
    "figures": table(number),
    "thresholds": table(number),
    "noise": table(number),
    "parameters": count,
    "examples": count,
    "total": optional(count),
    "gradients": count,
    "products": count,
    "evaluations": count,
    "seconds": number,
    "notes": listing(text),
    "complete": flag,
}
