"""Hidden units that may be exchanged for each other without changing what a network computes, found from any module.

A hidden unit has its numbers in several parameters: the row of weights and the bias that make it, what normalises it, and the
columns that its value is multiplied with. Which belong together is measured: every operation with weights is replaced by one
that gives fixed numbers, those of single units are changed, and one sees at which inputs of other operations the change
arrives. Through whatever lies between (activations, pooling, dropout, reshaping, sums with a residual) it arrives at the unit's
own places only; where it reaches all places, or the output, the unit has no equal. So each connected set of places is a unit,
and units with places in the same parameters are a group. Evaluation has the last word: a group counts only where the network,
with noise on its weights, gives the same outputs after a random permutation of it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thalweg.sampling.sources import leaves

Indices = npt.NDArray[np.int64]
Key = tuple[str, int]
"""A parameter or buffer by its name, and one of its axes."""
_Arrived = dict[tuple[int, int], npt.NDArray[np.bool_]]
"""By operation and input, which of its places a change reaches."""

LOW, HIGH, CHANGE = (
    0.3,
    0.5,
    0.2,
)  # of the fixed numbers: activations let those through, and tell them from changed ones
CHANGED = 1e-5  # of a number, that tells a change from round-off
MOST_BLOCKS = 512  # sets of units, of which several arrive at one place
MOST_SWAPS = 400  # evaluations in search of equals within a group that is none as a whole
SAME = 1e-3  # of the largest output: beyond the round-off of sums in another order
NOISE = 0.5  # of a weight's usual size
DRAWS = 3  # of noise


class UnitGroup(NamedTuple):
    """Units that may be exchanged: the weights that make them, by name, and by parameter and axis the positions of each, an
    array of shape (units, positions)."""

    name: str
    places: Mapping[Key, Indices]

    @property
    def units(self) -> int:
        """How many there are."""
        return len(next(iter(self.places.values())))


class HiddenUnits(NamedTuple):
    """The groups, and the weights whose units have no equals that could be found, as those of attention's queries and keys."""

    groups: tuple[UnitGroup, ...]
    left: tuple[str, ...]


def hidden_units(model: nn.Module, call: Callable[[], Any], *, seed: int = 0) -> HiddenUnits:
    """Find the groups of hidden units of a model that may be exchanged for each other.

    Arguments:
        model: in the mode in which it is to be evaluated. Its weights and buffers are as before afterwards.
        call: calls it on some examples, always the same, and gives outputs or a loss: any tree of tensors.
        seed: of the noise and the permutations by which groups are checked.

    Units with numbers in parameters that are not trained are left alone. Without groups where the model cannot be followed,
    as one that was compiled.

    >>> net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    >>> found = hidden_units(net, lambda: net(torch.ones(4, 3)))
    >>> [(group.units, sorted(group.places)) for group in found.groups]
    [(5, [('0.bias', 0), ('0.weight', 0), ('2.weight', 1)])]
    """
    trace = _Trace(model, call)
    with _unmoved(model):
        try:
            trace.follow()
        except Exception:  # whatever a model says to fixed numbers: it cannot be followed
            return HiddenUnits((), tuple(n for n, p in model.named_parameters() if p.dim() > 1))
    groups, others = trace.groups()
    with _unmoved(model):
        checked, failed = _checked(model, call, groups, seed)
    return HiddenUnits(tuple(checked), tuple(sorted({*others, *failed})))


def permuted(
    tensors: Mapping[str, Tensor], groups: Sequence[UnitGroup], orders: Sequence[Indices]
) -> dict[str, Tensor]:
    """Give weights and buffers with the units of each group in another order.

    Arguments:
        tensors: by name. Those that no group touches are given back as they are.
        groups: as `hidden_units` finds them.
        orders: of each group: which unit takes the place of each.
    """
    moved = dict(tensors)
    for (name, axis), index in index_of(tensors, groups, orders).items():
        moved[name] = moved[name].index_select(axis, torch.from_numpy(index).to(moved[name].device))
    return moved


def index_of(
    tensors: Mapping[str, Tensor], groups: Sequence[UnitGroup], orders: Sequence[Indices]
) -> dict[Key, Indices]:
    """Give by parameter and axis which position takes the place of each."""
    found = dict[Key, Indices]()
    for group, order in zip(groups, orders, strict=True):
        for (name, axis), places in group.places.items():
            if name in tensors:
                index = found.setdefault((name, axis), np.arange(tensors[name].shape[axis]))
                index[places] = places[order]
    return found


class _Input(NamedTuple):
    """What an operation multiplies: the axis of channels, and the parameter's axis that belongs to it, if one does."""

    tensor: Tensor
    axis: int
    keys: tuple[Key, ...]


class _Operation(NamedTuple):
    """An operation with weights. `made`: the parameters' axes that make each unit of the output, each with how often one after
    the other they hold all units. `elementwise`: a unit of the output is that of the input. `known`: else its units are no
    units that could be exchanged. `inside`: weights of units that it keeps to itself. `heads`: how many of these, and the
    axes that hold them: each with how often it holds all, one head after the other."""

    inputs: tuple[_Input, ...]
    made: tuple[tuple[Key, int], ...]
    axis: int = -1
    elementwise: bool = False
    known: bool = True
    inside: tuple[str, ...] = ()
    heads: tuple[int, tuple[tuple[Key, int], ...]] = (0, ())


class _Flag(NamedTuple):
    """What is changed in a pass: the units of an operation (`site`), or slices of a parameter along an axis (`key`)."""

    site: int | None
    key: Key | None
    mask: Tensor


class _Pass(NamedTuple):
    """What arrived: the inputs of all operations, and what the call gave."""

    given: list[list[Tensor]]
    output: list[Tensor]


class _Trace:
    """Follows single units through a model."""

    def __init__(self, model: nn.Module, call: Callable[[], Any]) -> None:
        self.model, self.call = model, call
        self.tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.names = {id(tensor): name for name, tensor in self.tensors.items()}
        self.sites = list[_Operation]()
        self.fixed = list[list[Tensor]]()
        self.spans = dict[Any, tuple[int, int]]()  # in one row of numbers: where each axis has its places
        self.size = 0
        self.edges = list[tuple[Indices, Indices]]()
        self.anchors = list[Indices]()
        self.made = list[Indices]()
        self.raw = list[str]()
        self.output_units = list[Indices]()

    def follow(self) -> None:
        """Run the passes, and note which places belong together."""
        generator = torch.Generator().manual_seed(0)
        raw = self.raw = self._record(generator)
        base = self._run(None)
        for number, site in enumerate(self.sites):
            self._tie_site(number, site)
        for number, fixed in enumerate(self.fixed):
            size = fixed[0].shape[self.sites[number].axis]
            self._follow_units(number, None, self._span(("site", number), size), size, base)
        for name in raw:
            for axis, size in enumerate(self.tensors[name].shape):
                if size > 1:
                    self._follow_units(None, (name, axis), self._span((name, axis), size), size, base)
        for name, tensor in self.tensors.items():
            if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
                self.anchors += [self._ids((name, axis)) for axis in range(tensor.dim()) if (name, axis) in self.spans]

    def _record(self, generator: torch.Generator) -> list[str]:
        """Call the model once, to know its operations; give the parameters that belong to none of them."""
        with torch.no_grad():
            for p in self.model.parameters():
                if p.is_floating_point():
                    p.copy_(_numbers(p, generator))
        with torch.enable_grad(), _Recording(self, generator):
            self.call()
        used = {name for site in self.sites for (name, _), _ in (*site.made, *site.heads[1])}
        used |= {name for site in self.sites for each in site.inputs for name, _ in each.keys}
        return [n for n, p in self.model.named_parameters() if n not in used and p.is_floating_point()]

    def _run(self, flag: _Flag | None, sites: Sequence[int] | None = None) -> _Pass:
        """Call the model with its operations replaced, as far as the last of some sites; default: to its end."""
        key = None if flag is None else flag.key
        parameter = None if key is None else self.tensors[key[0]]
        before = None if parameter is None else parameter.detach().clone()
        if flag is not None and key is not None and parameter is not None:
            with torch.no_grad():
                # Another change at each place along the other axes, as what is the same everywhere may cancel.
                change = parameter * CHANGE / LOW
                parameter.add_(change * _along(flag.mask.to(parameter), key[1], parameter.dim()))
        seen, output = _Replaying(self, flag, sites=sites), []
        try:
            with torch.enable_grad(), seen:
                output = leaves(self.call())
        except _EnoughSeen:
            return _Pass(seen.given, [])
        finally:
            if parameter is not None and before is not None:
                with torch.no_grad():
                    parameter.copy_(before)
        if len(seen.given) != len(self.sites):
            raise ValueError("The model takes another way with other numbers.")
        return _Pass(seen.given, [leaf.detach().clone() for leaf in output])

    def _span(self, key: Any, size: int) -> tuple[int, int]:
        if key not in self.spans:
            self.spans[key] = (self.size, size)
            self.size += size
        return self.spans[key]

    def _ids(self, key: Any) -> Indices:
        first, size = self.spans[key]
        return np.arange(first, first + size)

    def _join(self, one: Indices, other: Indices) -> None:
        self.edges.append((one, other))

    def _tie_site(self, number: int, site: _Operation) -> None:
        """Join the places that one operation has of a unit."""
        size = self.fixed[number][0].shape[site.axis]
        first, _ = self._span(("site", number), size)
        units = np.arange(first, first + size)
        for (name, axis), times in site.made:
            self._span((name, axis), self.tensors[name].shape[axis])
            for one in self._ids((name, axis)).reshape(times, size):
                self._join(units, one)
        for slot, each in enumerate(site.inputs):
            length = each.tensor.shape[each.axis]
            self._span(("input", number, slot), length)
            places = self._ids(("input", number, slot))
            for name, axis in each.keys:
                self._span((name, axis), self.tensors[name].shape[axis])
                self._join(places, self._ids((name, axis)))
            if site.elementwise:
                self._join(places, units)
            elif not each.keys:
                self.anchors.append(places)
        if not site.known:
            self.anchors.append(units)
        heads, held = site.heads
        if heads:
            self._span(("heads", number), heads)
            own = self._ids(("heads", number))
            self.made.append(own)
            for (name, axis), times in held:
                self._span((name, axis), self.tensors[name].shape[axis])
                places = self._ids((name, axis)).reshape(times, heads, -1)
                self._join(np.broadcast_to(own[:, None], places.shape).ravel(), places.ravel())

    def _follow_units(self, site: int | None, key: Key | None, span: tuple[int, int], size: int, base: _Pass) -> None:
        """Change units, by the digits of their numbers, and join each with the places where the change arrives."""
        units = np.arange(span[0], span[0] + size)
        self.made.append(units)

        def arrived(mask: Indices, sites: Sequence[int] | None = None) -> tuple[_Arrived, bool]:
            seen = self._run(_Flag(site, key, torch.from_numpy(mask.astype(np.float32))), sites)
            found: _Arrived = {}
            for number, (now, before) in enumerate(zip(seen.given, base.given, strict=False)):
                for slot, (one, other) in enumerate(zip(now, before, strict=False)):
                    found[number, slot] = _changed(one, other, self.sites[number].inputs[slot].axis)
            same_output = len(seen.output) == len(base.output) and all(
                one.shape == other.shape and not bool(_differs(one, other).any())
                for one, other in zip(seen.output, base.output, strict=True)
            )
            return found, not same_output

        whole, ends = arrived(np.ones(size, np.int64))
        if ends:  # the output is made of them
            self.anchors.append(units)
            if site is not None:
                self.output_units.append(units)
        reached = [place for place, changed in whole.items() if changed.any()]
        if not reached or ends:
            if not reached and key is not None:
                self.anchors.append(units)
            return
        digits = max(1, math.ceil(math.log2(size)))
        numbers, sites = np.arange(size), sorted({number for number, _ in reached})
        passes = [
            (arrived(numbers >> digit & 1, sites)[0], arrived(1 - (numbers >> digit & 1), sites)[0])
            for digit in range(digits)
        ]
        several = False
        for place in reached:
            ones = np.array([one[place] for one, _ in passes])
            zeros = np.array([zero[place] for _, zero in passes])
            if (ones & zeros).any():
                several = True
                break
            at = np.flatnonzero(whole[place])
            unit = (ones[:, at] * (1 << np.arange(digits))[:, None]).sum(0)
            self._join(units[unit], self._ids(("input", *place))[at])
        if several and site is not None:
            self._follow_blocks(site, units, reached, arrived)
        elif several:
            self.anchors.append(units)

    def _follow_blocks(
        self,
        site: int,
        units: Indices,
        reached: list[tuple[int, int]],
        arrived: Callable[..., tuple[_Arrived, bool]],
    ) -> None:
        """Join units of which several arrive at one place: the halves of a gate, those of an attention head, or all of them,
        where they are summed up or normalised together. One unit shows the places, and these, by their gradient, all units."""
        waiting, blocks, sites = np.ones(len(units), np.bool_), 0, sorted({number for number, _ in reached})
        while waiting.any():
            blocks += 1
            if blocks > MOST_BLOCKS:
                self.anchors.append(units)
                return
            one = np.zeros(len(units), np.int64)
            one[int(np.argmax(waiting))] = 1
            found = arrived(one, sites)[0]
            together = one.astype(np.bool_) | self._behind(site, {place: found[place] for place in reached}, sites)
            for place in reached:
                at = self._ids(("input", *place))[found[place]]
                self._join(np.full(len(at), units[int(np.argmax(one))]), at)
            others = units[together]
            self._join(others[:-1], others[1:])
            waiting &= ~together

    def _behind(self, site: int, places: _Arrived, sites: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Tell which units of an operation some places depend on."""
        seen = _Replaying(self, None, sites=sites, differentiated=site)
        with contextlib.suppress(_EnoughSeen), torch.enable_grad(), seen:
            self.call()
        total = torch.zeros(())
        for (number, slot), at in places.items():
            given = seen.given[number][slot]
            if at.any() and given.requires_grad:
                chosen = given.movedim(self.sites[number].inputs[slot].axis, 0)[torch.from_numpy(at).to(given.device)]
                weights = torch.linspace(0.5, 1.5, chosen.numel(), device=given.device).view_as(chosen)
                total = total.to(given.device) + (chosen.float() * weights).sum()
        fixed = seen.leaf
        if not total.requires_grad or fixed is None:
            return np.zeros(self.fixed[site][0].shape[self.sites[site].axis], np.bool_)
        (gradient,) = torch.autograd.grad(total, fixed, allow_unused=True, materialize_grads=True)
        return (gradient.movedim(self.sites[site].axis, 0).flatten(1) != 0).any(1).cpu().numpy()

    def groups(self) -> tuple[list[UnitGroup], list[str]]:
        """Give the units that have places in the same parameters, together; and the weights whose units have no equals."""
        if not self.size:
            return [], [n for n, p in self.model.named_parameters() if p.dim() > 1]
        ones = np.concatenate([one for one, _ in self.edges] or [np.zeros(0, np.int64)])
        others = np.concatenate([other for _, other in self.edges] or [np.zeros(0, np.int64)])
        graph = coo_array((np.ones(len(ones)), (ones, others)), shape=(self.size, self.size))
        labels: Indices = connected_components(graph, directed=False)[1]
        fixed = set(labels[np.concatenate(self.anchors)].tolist()) if self.anchors else set[int]()
        fixed |= set(labels.tolist()) - set(
            labels[np.concatenate([*self.made, np.zeros(0, np.int64)])].tolist()
        )  # what the data are multiplied with
        places = defaultdict[int, dict[Key, list[int]]](lambda: defaultdict(list))
        for key, (first, size) in self.spans.items():
            if key[0] in self.tensors and len(key) == 2:
                for position, label in enumerate(labels[first : first + size].tolist()):
                    if label not in fixed:
                        places[label][key].append(position)
        alike = defaultdict[Any, list[dict[Key, list[int]]]](list)
        for label in sorted(places):
            alike[tuple((key, len(at)) for key, at in sorted(places[label].items()))].append(places[label])
        found = [
            UnitGroup(self._name(units[0]), {key: np.array([unit[key] for unit in units]) for key in sorted(units[0])})
            for units in alike.values()
            if len(units) > 1
        ]
        return found, self._left(labels, found)

    def _name(self, unit: Mapping[Key, Any]) -> str:
        """Name the first weights that make a unit."""
        made = [key for site in self.sites for key, _ in site.made if key in unit]
        made = made or [key for key in sorted(unit) if key[0] in self.raw] or sorted(unit)
        return next((name for name, _ in made if self.tensors[name].dim() > 1), made[0][0])

    def _left(self, labels: Indices, found: list[UnitGroup]) -> list[str]:
        """Name the weights whose units are neither in a group nor the output, and those that belong to no known operation."""
        moved = {key for group in found for key in group.places}
        ends = set(labels[np.concatenate(self.output_units)].tolist()) if self.output_units else set[int]()
        names = {name for name, _ in moved}
        left = [name for name in self.raw if self.tensors[name].dim() > 1 and name not in names]
        for site in self.sites:
            left += site.inside
            for key, _ in site.made:
                hidden = key in self.spans and not set(labels[self._ids(key)].tolist()) <= ends
                if hidden and key not in moved and self.tensors[key[0]].dim() > 1:
                    left.append(key[0])
        return left


class _EnoughSeen(BaseException):
    """Ends a pass: no later operation is asked about. No model takes it for an error of its own."""


class _Recording(TorchFunctionMode):
    """Within, operations with weights are noted, and give fixed numbers."""

    def __init__(self, trace: _Trace, generator: torch.Generator) -> None:
        super().__init__()
        self.trace, self.generator = trace, generator

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        site = _operation(func, args, kwargs, self.trace.names)
        made = func(*args, **kwargs)
        if site is None:
            return made
        fixed = [_numbers(leaf, self.generator) for leaf in _floating(made)]
        self.trace.sites.append(site)
        self.trace.fixed.append(fixed)
        return _with(made, fixed)


class _Replaying(TorchFunctionMode):
    """Within, operations with weights give the numbers that were noted, changed in some units."""

    def __init__(
        self,
        trace: _Trace,
        flag: _Flag | None,
        *,
        sites: Sequence[int] | None = None,
        differentiated: int | None = None,
    ) -> None:
        super().__init__()
        self.trace, self.flag, self.differentiated = trace, flag, differentiated
        self.sites = None if sites is None else frozenset(sites)
        self.last = None if sites is None else max(sites)
        self.given = list[list[Tensor]]()
        self.leaf: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        site = _operation(func, args, kwargs, self.trace.names)
        if site is None:
            return func(*args, **kwargs)
        number = len(self.given)
        if number >= len(self.trace.sites) or self.trace.sites[number].made != site.made:
            raise ValueError("The model takes another way with other numbers.")
        self.given.append(self._kept(number, site))
        if number == self.last:
            raise _EnoughSeen
        fixed = self.trace.fixed[number]
        if number == self.differentiated:
            self.leaf = fixed[0].clone().requires_grad_(True)
            fixed = [self.leaf, *fixed[1:]]
        if self.flag is not None and self.flag.site == number:
            mask = self.flag.mask
            fixed = [
                each * (1 + CHANGE / LOW * _along(mask.to(each), site.axis % each.dim(), each.dim())) for each in fixed
            ]
        return _like(func, fixed)

    def _kept(self, number: int, site: _Operation) -> list[Tensor]:
        if self.sites is not None and number not in self.sites:
            return []
        if self.differentiated is not None:
            return [each.tensor for each in site.inputs]
        return [each.tensor.detach().clone() for each in site.inputs]


# What gives several tensors: the second of attention is its weights, which are asked for or None.
_TUPLES = {"lstm_cell", "lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward"}


def _like(func: Any, fixed: list[Tensor]) -> Any:
    name = func.__name__
    if name == "multi_head_attention_forward":
        return fixed[0], fixed[1] if len(fixed) > 1 else None
    return tuple(fixed) if name in _TUPLES else fixed[0].clone()


def _with(made: Any, fixed: list[Tensor]) -> Any:
    if isinstance(made, Tensor):
        return fixed[0].clone()
    return (*fixed, None) if len(fixed) < len(made) else tuple(fixed)


def _floating(made: Any) -> list[Tensor]:
    return [leaf for leaf in ([made] if isinstance(made, Tensor) else made) if isinstance(leaf, Tensor)]


def _numbers(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(like.shape, generator=generator) * (HIGH - LOW) + LOW
    return drawn.to(like.device, like.dtype)


def _along(mask: Tensor, axis: int, dimensions: int) -> Tensor:
    shape = [1] * dimensions
    shape[axis] = -1
    return mask.view(shape)


def _differs(one: Tensor, other: Tensor) -> Tensor:
    if not one.is_floating_point():
        return one != other
    # What is no number in both is no change.
    return ((one - other).abs() > CHANGED * (CHANGE + other.abs())) | (one.isnan() != other.isnan())


def _changed(one: Tensor, other: Tensor, axis: int) -> npt.NDArray[np.bool_]:
    """Tell of each channel whether anything of it differs."""
    if one.shape != other.shape:
        raise ValueError("The model takes another way with other numbers.")
    return _differs(one, other).movedim(axis, 0).flatten(1).any(1).cpu().numpy()


_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    **{f"conv{d}d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups") for d in (1, 2, 3)},
    **{
        f"conv_transpose{d}d": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups")
        for d in (1, 2, 3)
    },
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "group_norm": ("input", "num_groups", "weight", "bias"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias"),
    "rms_norm": ("input", "normalized_shape", "weight"),
    "prelu": ("input", "weight"),
    "embedding": ("input", "weight"),
    "embedding_bag": ("input", "weight"),
    "matmul": ("input", "weight"),
    "__matmul__": ("input", "weight"),
    "mm": ("input", "weight"),
    "addmm": ("bias", "input", "weight"),
    "multi_head_attention_forward": (
        *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias"),
        *("bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias"),
    ),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), ("input", "hx", "weights")),
    **dict.fromkeys(
        ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")
    ),
}
_ATTENDED = ("query", "key", "value")
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_NORMS = {"batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm", "prelu"}


def _operation(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Mapping[int, str]
) -> _Operation | None:
    """Give what an operation has to do with the model's weights; None where nothing."""
    name = getattr(func, "__name__", "")
    if name not in _ARGUMENTS:
        return None
    given = {**dict(zip(_ARGUMENTS[name], args, strict=False)), **kwargs}
    if name in _GATES and len(args) > 3 and isinstance(args[3], Sequence):  # packed: data and batch sizes come first
        given |= {"hx": args[2], "weights": args[3]}

    def key(argument: str, axis: int) -> tuple[Key, ...]:
        own = names.get(id(given.get(argument)))
        return () if own is None else ((own, axis),)

    def made(*keys: tuple[Key, ...], times: int = 1) -> tuple[tuple[Key, int], ...]:
        return tuple((each, times) for each in itertools.chain(*keys))

    inputs, weight = given.get("input"), given.get("weight")
    if name in ("matmul", "__matmul__", "mm", "addmm"):
        if not key("weight", 0) or not isinstance(inputs, Tensor) or weight is None or weight.dim() != 2:
            return None
        return _Operation(
            (_Input(inputs, -1, key("weight", 0)),), made(key("weight", 1), key("bias", 0) if name == "addmm" else ())
        )
    if name in ("embedding", "embedding_bag"):
        return _Operation((), made(key("weight", 1)), known=bool(key("weight", 1)))
    if name == "multi_head_attention_forward":
        joint = key("in_proj_weight", 1)
        apart = [key(f"{part}_proj_weight", 1) for part in "qkv"]
        slots = tuple(_Input(given[part], -1, joint or own) for part, own in zip(_ATTENDED, apart, strict=True))
        heads = [((each, 0), 1) for own in apart for each, _ in own]
        heads += [((each, 0), 3) for argument in ("in_proj_weight", "in_proj_bias") for each, _ in key(argument, 0)]
        heads += [((each, 1), 1) for each, _ in key("out_proj_weight", 1)]
        return _Operation(
            slots,
            made(key("out_proj_weight", 0), key("out_proj_bias", 0)),
            known=bool(key("out_proj_weight", 0)),
            heads=(int(given["num_heads"]), tuple(heads)),
        )
    if name in _GATES:
        return _recurrent(name, given, names)
    if name.endswith("_cell"):
        state = given["hx"][0] if name == "lstm_cell" else given["hx"]
        times = _GATES[name.removesuffix("_cell")]
        return _Operation(
            (_Input(given["input"], -1, key("w_ih", 1)), _Input(state, -1, key("w_hh", 1))),
            (*made(key("w_ih", 0), key("w_hh", 0), key("b_ih", 0), key("b_hh", 0), times=times),),
            known=bool(key("w_ih", 0)),
        )
    assert isinstance(inputs, Tensor)
    if name in _NORMS:
        return _normalising(name, given, key, made)
    if name == "linear":
        return _Operation((_Input(inputs, -1, key("weight", 1)),), made(key("weight", 0), key("bias", 0)), -1)._replace(
            known=bool(key("weight", 0))
        )
    dimensions, groups = int(name[-2]), given.get("groups", 1)
    axis, transposed = -dimensions - 1, "transpose" in name
    if groups == 1:
        ins, outs = (0, 1) if transposed else (1, 0)
        return _Operation(
            (_Input(inputs, axis, key("weight", ins)),), made(key("weight", outs), key("bias", 0)), axis
        )._replace(known=bool(key("weight", outs)))
    assert isinstance(weight, Tensor)
    alone = weight.shape[0] == groups == inputs.shape[axis] and weight.shape[1] == 1
    if alone and key("weight", 0):
        return _Operation((_Input(inputs, axis, ()),), made(key("weight", 0), key("bias", 0)), axis, elementwise=True)
    return _Operation((_Input(inputs, axis, ()),), (), axis, known=False, inside=tuple(n for n, _ in key("weight", 0)))


def _normalising(name: str, given: Mapping[str, Any], key: Any, made: Any) -> _Operation | None:
    """Give a normalisation, of which each unit has its own scale and shift; None where it has none of its own and mixes none."""
    inputs = given["input"]
    keys = made(*(key(argument, 0) for argument in ("weight", "bias", "running_mean", "running_var")))
    if name == "prelu" and given["weight"].numel() == 1:
        return None
    axis = -1 if name in ("layer_norm", "rms_norm") else 1
    known = True
    if axis == -1 and len(given["normalized_shape"]) != 1:
        known = False
    if name == "group_norm" and given["num_groups"] not in (1, inputs.shape[1]):
        known = False
    if name in ("batch_norm", "instance_norm", "group_norm", "prelu") and inputs.dim() < 2:
        known = False
    if not known:
        return _Operation((_Input(inputs, axis, ()),), (), axis, known=False)
    return _Operation((_Input(inputs, axis, ()),), keys, axis, elementwise=True)


def _recurrent(name: str, given: Mapping[str, Any], names: Mapping[int, str]) -> _Operation | None:
    """Give a recurrent layer: its units are known where it is one, in one direction, and has no projection."""
    inputs, weights = given["input"], given["weights"]
    if not isinstance(inputs, Tensor) or not isinstance(weights, Sequence):
        return None
    own = [names.get(id(each), "") for each in weights]
    gates = _GATES[name]
    into = _Input(inputs, -1, ((own[0], 1),) if own[0] else ())
    units = weights[0].shape[0] // gates
    simple = len(weights) in (2, 4) and all(own) and tuple(weights[1].shape) == (gates * units, units)
    if not simple:
        return _Operation((into,), (), known=False, inside=tuple(each for each in own if "weight" in each))
    made: list[tuple[Key, int]] = [((each, 0), gates) for each in own]
    return _Operation((into,), (*made, ((own[1], 1), 1)))


def _checked(
    model: nn.Module, call: Callable[[], Any], groups: Sequence[UnitGroup], seed: int
) -> tuple[list[UnitGroup], list[str]]:
    """Keep the groups whose permutations leave the outputs of the model, with noise on its weights, as they are."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    own = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    generator, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)

    def outputs(values: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            for name, value in values.items():
                tensors[name].copy_(value)
        with torch.enable_grad():
            return [leaf.detach().double().clone() for leaf in leaves(call())]

    drawn = list[tuple[Mapping[str, Tensor], list[Tensor]]]()
    for _ in range(DRAWS):
        noisy = {
            name: value + _noise(value, generator) if isinstance(tensors[name], nn.Parameter) else value
            for name, value in own.items()
        }
        expected = outputs(noisy)
        if all(bool(torch.isfinite(each).all()) for each in expected):
            drawn.append((noisy, expected))
    drawn = drawn or [(own, outputs(own))]

    def same(group: UnitGroup, order: Indices) -> bool:
        return all(_alike(outputs(permuted(noisy, [group], [order])), expected) for noisy, expected in drawn)

    kept, failed = list[UnitGroup](), list[str]()
    for group in groups:
        if same(group, _mixed(group.units, random)):
            kept.append(group)
            continue
        parts = _equals(group, same)
        kept += parts
        if not parts:
            failed.append(group.name)
    return kept, failed


def _alike(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(found) == len(expected) and all(
        one.shape == other.shape and bool(((one - other).abs() <= SAME * float(other.abs().max())).all())
        for one, other in zip(found, expected, strict=True)
        if other.numel()
    )


def _mixed(count: int, random: np.random.Generator) -> Indices:
    """Give a random order in which no unit keeps its place."""
    around = random.permutation(count)
    order = np.empty(count, np.int64)
    order[around] = np.roll(around, 1)
    return order


def _equals(group: UnitGroup, same: Callable[[UnitGroup, Indices], bool]) -> list[UnitGroup]:
    """Split a group whose units are not all equals, as those of several attention heads, into ones whose units are."""
    classes, tried = list[list[int]](), 0
    for unit in range(group.units):
        for members in classes:
            order = np.arange(group.units)
            order[[unit, members[0]]] = members[0], unit
            tried += 1
            if tried > MOST_SWAPS:
                return []
            if same(group, order):
                members.append(unit)
                break
        else:
            classes.append([unit])
    return [
        UnitGroup(group.name, {key: places[members] for key, places in group.places.items()})
        for members in classes
        if len(members) > 1
    ]


def _noise(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return torch.zeros_like(value)
    size = float(value.double().square().mean().sqrt()) if value.numel() else 0.0
    drawn = torch.randn(value.shape, generator=generator)
    return (NOISE * (size or 1.0) * drawn).to(value.device, value.dtype)


@contextmanager
def _unmoved(model: nn.Module) -> Generator[None]:
    """Within, weights and buffers may be changed; afterwards they are as before, bit for bit."""
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(tensors, before, strict=True):
                tensor.copy_(values)
