"""The loss surface of a model: its mean loss over given batches, as a function of all weights that are trained."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.errors import TaskError
from thalweg.landscape.affine_maps import AffineMaps
from thalweg.landscape.dots import dot, length
from thalweg.landscape.objective import Objective
from thalweg.landscape.processes import OneProcess, Processes
from thalweg.landscape.surface import LossAt, Product, Slope, along
from thalweg.optim.recalibration import gathers_statistics, recalibrated
from thalweg.sampling.sources import leaves

KEPT_BYTES = 512 << 20  # of graphs that are kept from one product to the next
# What PyTorch imports, with all of sympy, when a gradient is first differentiated along a vector: it takes half a second. The
# derivative of the sum of their products is the same, bit for bit, without that.
IMPORTED_BY_PRODUCTS = "torch.fx.experimental.symbolic_shapes"
FEW_WEIGHTS = 1_000_000  # for which the products themselves take no memory to speak of
ASYMMETRY = {torch.float32: 1e-4, torch.float64: 1e-7}  # of a product: beyond round-off
SAME = {torch.float32: 1e-4, torch.float64: 1e-10}  # of the loss: beyond round-off
STEP = 1e-3  # of a finite difference, relative to the length of the weights
Matrix = Literal["hessian", "gauss-newton"]


class Part(NamedTuple):
    """A batch on the model's device, and its share of the whole loss: shares add up to 1."""

    batch: Any
    share: float


class ModelSurface:
    """The loss of a model over given batches.

    The model must be in the mode in which the loss is to be measured; `seed_for(number)` is called before batch `number`, so that
    what draws random numbers draws the same at every point. Weights are written into the model: within `put_back` only, which
    gives it those that it had.

    Arguments:
        model: its floating-point parameters that require a gradient are the point. One that is shared counts once.
        objective: gives the loss of a batch.
        parts: the batches.
        is_sample: the share of all data that they are, for the gradient's sampling error: 1 where they are all.
        seed_for: see above.
        recalibrate: whether a loss at another point is measured with batch normalisation's statistics estimated anew there,
            from the same batches. Gradients and products have those of the model as it is.
        processes: that share the batches: each has the same model and all batches, and calls the same functions. None: all of
            them are this process's.

    Attributes:
        products: how often a Hessian or Gauss-Newton matrix was multiplied with a vector; `gradients`, `evaluations`: how
            often the gradient, or only the loss, was computed, over all batches.
        differences: why products are differences of gradients, where an operation has no second derivative; else empty.

    Raises TaskError where there is nothing trained, or the loss differs between two calls at the same weights.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        parts: Sequence[Part],
        *,
        share_of_data: float = 1.0,
        seed_for: Callable[[int], None] = lambda number: None,
        recalibrate: bool = False,
        processes: Processes | OneProcess | None = None,
    ) -> None:
        self.model, self.objective, self.parts = model, objective, list(parts)
        self.share_of_data, self._seed_for, self.recalibrate = share_of_data, seed_for, recalibrate
        self.processes = OneProcess() if processes is None else processes
        self.parameters = [p for p in model.parameters() if p.requires_grad and p.is_floating_point()]
        self.names = [n for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point()]
        if not self.parameters:
            raise TaskError("The model trains no weights that are real numbers, so it has no loss surface.")
        self.sizes = [p.numel() for p in self.parameters]
        self.size = sum(self.sizes)
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.parameters) else torch.float32
        self.device = self.parameters[0].device
        self.products = self.gradients = self.evaluations = 0
        self.differences = ""
        self._affine: AffineMaps | None = None

    def of(self, model: nn.Module) -> ModelSurface:
        """Give the loss surface of another model over the same batches."""
        return ModelSurface(
            model,
            self.objective,
            self.parts,
            share_of_data=self.share_of_data,
            seed_for=self._seed_for,
            recalibrate=self.recalibrate,
            processes=self.processes,
        )

    @property
    def point(self) -> Tensor:
        """The model's weights as they are now. A copy."""
        return self.flat(p.detach() for p in self.parameters)

    def flat(self, tensors: Any) -> Tensor:
        """Join tensors that have the shapes of the parameters into one vector of shape (size,)."""
        return torch.cat([tensor.reshape(-1).to(self.device, self.dtype) for tensor in tensors])

    def shaped(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector of shape (size,) into views of the parameters' shapes."""
        return [part.view(p.shape) for part, p in zip(vector.split(self.sizes), self.parameters, strict=True)]

    @contextmanager
    def put_back(self) -> Generator[None]:
        """Within, other weights may be written into the model; afterwards it has those that it had, bit for bit."""
        before = [p.detach().clone() for p in self.parameters]
        try:
            yield
        finally:
            with torch.no_grad():
                for p, values in zip(self.parameters, before, strict=True):
                    p.copy_(values)

    def move_to(self, point: Tensor) -> None:
        """Write a point into the model."""
        with torch.no_grad():
            for p, values in zip(self.parameters, self.shaped(point), strict=True):
                p.copy_(values)

    def check_repeats(self) -> None:
        """Raise TaskError where the loss differs between two calls at the same weights."""
        first, second = (self.loss(self.point) for _ in range(2))
        if first != second and not (math.isnan(first) and math.isnan(second)):
            raise TaskError(
                f"The loss differs between two calls with the same weights and examples ({first:.9g}, {second:.9g}), so it has no"
                f" surface. Take what draws random numbers, or remembers calls, out of evaluation mode."
            )

    def check_symmetric(self) -> None:
        """Multiply by differences of gradients from here on, and say so in `differences`, where the Hessian that differentiating
        twice gives is not symmetric: the second derivative of some operation is wrong then, as PyTorch's of weight
        normalisation is.
        """
        if self.differences or any(p.dtype not in ASYMMETRY for p in self.parameters):
            return
        generator = torch.Generator().manual_seed(0)
        one, other = (torch.randn(self.size, generator=generator).to(self.device, self.dtype) for _ in range(2))
        product = self.hessian(self.point)
        first, second = product(one), product(other)
        apart = abs(dot(first, other) - dot(second, one))
        scale = length(first) + length(second)
        if apart > ASYMMETRY[self.dtype] * scale and not self.differences:
            self.differences = "the second derivative of an operation is wrong (the Hessian is not symmetric by it)"

    def loss(self, point: Tensor) -> float:
        """Give the loss at a point, which the model has from then on."""
        self.move_to(point)
        self.evaluations += 1
        total = 0.0
        anew = recalibrated(self.model, self.parts, self._forward) if self.recalibrate else nullcontext()
        with anew, self.objective.gradient_mode():
            for number, part in self._own:
                total += part.share * float(self._loss_of(number, part).detach())
        return self.processes.sum_numbers([total], self.device)[0]

    @property
    def _own(self) -> Iterator[tuple[int, Part]]:
        """The batches that are this process's."""
        return self.processes.own(self.parts)

    def losses(self, points: Sequence[Tensor]) -> list[float]:
        """Give the losses at several points."""
        return [self.loss(point) for point in points]

    @contextmanager
    def over(self, point: Tensor, directions: Sequence[Tensor]) -> Generator[LossAt]:
        """Within, give the loss at a point plus multiples of some directions; layers that see only the data are multiplied once.

        That gives the same losses: it is tried at two points, and left if they differ.
        """

        def loss_at(*coordinates: float) -> float:
            return self.loss(along(point, directions, coordinates))

        maps = self._maps(point, directions)
        if maps is None:
            yield loss_at
            return

        def mapped(*coordinates: float) -> float:
            maps.coordinates = coordinates
            return loss_at(*coordinates)

        ends = [(1.0,) * len(directions), (-0.5,) * len(directions)]
        plain = [loss_at(*end) for end in ends]
        self._affine = maps
        try:
            with maps.in_place():
                same = all(
                    math.isclose(mapped(*end), loss, rel_tol=SAME[self.dtype]) or not math.isfinite(loss)
                    for end, loss in zip(ends, plain, strict=True)
                )
                if same:
                    yield mapped
        finally:
            self._affine = None
        if not same:
            yield loss_at

    def _maps(self, point: Tensor, directions: Sequence[Tensor]) -> AffineMaps | None:
        """Give the layers whose outputs are known over a plane; None where there are none."""
        if self.recalibrate and gathers_statistics(self.model):
            return None
        shaped = [self.shaped(direction) for direction in directions]
        shares = {id(p): [s[place].to(p.dtype) for s in shaped] for place, p in enumerate(self.parameters)}
        maps = AffineMaps(self.model, shares)
        self.move_to(point)
        self.evaluations += 1
        for number, part in self._own:
            with torch.enable_grad(), maps.noting(number):
                self._loss_of(number, part)
        usable = self.processes.any_text("" if maps.is_empty else "usable")  # all have to take the same way
        return maps if usable else None

    def slope(self, point: Tensor) -> Slope:
        """Give the gradient at a point, which the model has from then on; the error is from the spread over the batches."""
        self.move_to(point)
        loss, squares = 0.0, 0.0
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for part, value, own in self.gradients_of_parts():
            loss += part.share * value
            squares += part.share * dot(own, own)
            total.add_(own, alpha=part.share)
        total = self.processes.sum(total)
        loss, squares = self.processes.sum_numbers([loss, squares], self.device)
        count = len(self.parts)
        spread = max(0.0, squares - dot(total, total))
        error = spread / (count - 1) if count > 1 else 0.0
        return Slope(loss, total, error * (1 - self.share_of_data))

    def gradients_of_parts(self) -> Iterator[tuple[Part, float, Tensor]]:
        """Give each batch of this process with its loss and its gradient, of shape (size,), at the weights that the model has."""
        self.gradients += 1
        for number, part in self._own:
            with torch.enable_grad():
                value = self._loss_of(number, part)
                gradient = self._gradient(value)
            yield part, float(value.detach()), self.flat(gradient)

    def _forward(self, model: nn.Module, part: Part) -> Any:
        return self.objective.loss(model, part.batch)

    def _loss_of(self, number: int, part: Part) -> Tensor:
        self._seed_for(number)
        if self._affine is not None:
            self._affine.batch = number
        return self.objective.loss(self.model, part.batch)[0]

    def _gradient(self, loss: Tensor, *, graph: bool = False) -> tuple[Tensor, ...]:
        if not loss.requires_grad:
            return tuple(torch.zeros_like(p) for p in self.parameters)
        return torch.autograd.grad(loss, self.parameters, create_graph=graph, allow_unused=True, materialize_grads=True)

    def hessian(self, point: Tensor) -> Product:
        """Give the function that multiplies the Hessian at a point with a vector, see `multiplied`."""
        return self.multiplied("hessian", point)

    def multiplied(self, matrix: Matrix, point: Tensor) -> Product:
        """Give the function that multiplies the Hessian, or the Gauss-Newton matrix, at a point with a vector of shape (size,).

        The graphs of batches are kept from one product to the next while they take no more than 512 MB. The Gauss-Newton matrix
        needs a loss that is a function of the model's output.

        Raises TaskError where a task's own `step` hides the output.
        """
        self.move_to(point)
        if matrix == "gauss-newton" and self.objective.task.step is not None:
            raise TaskError(
                "The Gauss-Newton matrix needs outputs and a loss apart, and this task has a `step` of its own."
            )
        graphs: dict[int, _Graph] = {}
        kept = _Budget(KEPT_BYTES)
        is_checked = False

        def product(vector: Tensor) -> Tensor:
            nonlocal is_checked
            self.products += 1
            if self.differences:
                return self._difference(point, vector)
            self.move_to(point)
            total = self._own_product(matrix, vector, graphs, kept)
            if not is_checked:
                self.differences = self.processes.any_text(self.differences)
                is_checked = True
            if self.differences or total is None:
                return self._difference(point, vector)
            return self.processes.sum(total)

        return product

    def _own_product(self, matrix: Matrix, vector: Tensor, graphs: dict[int, _Graph], kept: _Budget) -> Tensor | None:
        """Multiply for the batches of this process; None where an operation has no second derivative, which is noted."""
        total, shaped = torch.zeros_like(vector), self.shaped(vector)
        for place, (number, part) in enumerate(self._own):
            graph = graphs.get(number)
            if graph is None:
                graph = self._graph(matrix, number, part, kept)
                if place == 0 and matrix == "hessian" and self._hides_second_derivative(graph):
                    return None
                kept.left -= self.size * self.dtype.itemsize  # of the gradient, which begins the graph
                if kept.left > 0:
                    graphs[number] = graph
            try:
                found = graph.product(shaped, keep=number in graphs)
            except RuntimeError as error:
                if matrix != "hessian" or not self._has_no_second_derivative(error):
                    raise
                return None
            total.add_(self.flat(found), alpha=part.share)
        return total

    def _graph(self, matrix: Matrix, number: int, part: Part, kept: _Budget) -> _Graph:
        with (
            torch.enable_grad(),
            kept.counting(),
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.cudnn.flags(enabled=False),
        ):
            if matrix == "hessian":
                loss = self._loss_of(number, part)
                return _HessianGraph(self.parameters, self._gradient(loss, graph=True))
            self._seed_for(number)
            output, target = self.objective.outputs(self.model, part.batch)
            loss = self.objective.task.loss(output, target)  # pyright: ignore[reportOptionalCall]
            return _GaussNewtonGraph(self.parameters, [leaf for leaf in leaves(output) if leaf.requires_grad], loss)

    def _hides_second_derivative(self, graph: _Graph) -> bool:
        """Note that a function of the user's says it can be differentiated once only, if one does.

        Its gradient ends in a node that raises an error, which autograd leaves out, as it does not lead to the weights: the
        product would lack what goes through there.
        """
        assert isinstance(graph, _HessianGraph)
        seen, waiting = set[Any](), [g.grad_fn for g in graph.gradient]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node.name().endswith("Error"):
                self.differences = "a function of its own can be differentiated once only"
                return True
            waiting += [after for after, _ in node.next_functions]
        return False

    def _has_no_second_derivative(self, error: RuntimeError) -> bool:
        """Note that an operation has none, if that is what an error says."""
        text = str(error)
        if "not implemented" not in text and "differentiable" not in text:
            return False
        self.differences = text.split("\n")[0].rstrip(".")
        return True

    def _difference(self, point: Tensor, vector: Tensor) -> Tensor:
        """Multiply the Hessian with a vector by the difference of two gradients."""
        size = length(vector)
        if not size > 0:
            return torch.zeros_like(vector)
        step = STEP * max(1.0, length(point)) / size
        ahead, behind = self.slope(point + step * vector).gradient, self.slope(point - step * vector).gradient
        self.move_to(point)
        return (ahead - behind) / (2 * step)


class _Budget:
    """Counts the bytes that graphs hold."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        self._seen = set[int]()

    @contextmanager
    def counting(self) -> Generator[None]:
        def pack(tensor: Tensor) -> Tensor:
            place = tensor.untyped_storage().data_ptr()
            if place not in self._seen:
                self._seen.add(place)
                self.left -= tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        self._seen.clear()


class _Graph:
    def product(self, vector: list[Tensor], *, keep: bool) -> Sequence[Tensor]:
        raise NotImplementedError


class _HessianGraph(_Graph):
    """The gradient of one batch with its own graph: differentiated along a vector it gives the Hessian's product."""

    def __init__(self, parameters: list[nn.Parameter], gradient: Sequence[Tensor]) -> None:
        self.parameters, self.gradient = parameters, gradient

    def product(self, vector: list[Tensor], *, keep: bool) -> Sequence[Tensor]:
        pairs = [(g, v.to(g.dtype)) for g, v in zip(self.gradient, vector, strict=True) if g.requires_grad]
        if not pairs:  # of a loss that is linear in all weights
            return [torch.zeros_like(p) for p in self.parameters]
        if IMPORTED_BY_PRODUCTS not in sys.modules and sum(g.numel() for g, _ in pairs) <= FEW_WEIGHTS:
            with torch.enable_grad():
                inner = torch.stack([(g * v).sum() for g, v in pairs if g.numel()]).sum()
            return torch.autograd.grad(
                inner, self.parameters, retain_graph=keep, allow_unused=True, materialize_grads=True
            )
        gradients, along = zip(*pairs, strict=True)
        return torch.autograd.grad(
            gradients, self.parameters, along, retain_graph=keep, allow_unused=True, materialize_grads=True
        )


class _GaussNewtonGraph(_Graph):
    """J' H J of one batch: J is the derivative of the outputs by the weights, H the loss's second derivative by the outputs.

    J v comes from differentiating J' u, which is linear in u, along v (Townsend 2017, "A new trick for calculating Jacobian
    vector products").
    """

    def __init__(self, parameters: list[nn.Parameter], outputs: list[Tensor], loss: Tensor) -> None:
        self.parameters, self.outputs = parameters, outputs
        self.loss_gradient = torch.autograd.grad(
            loss, outputs, create_graph=True, materialize_grads=True, allow_unused=True
        )
        self.direction = [torch.zeros_like(output, requires_grad=True) for output in outputs]
        self.transposed = torch.autograd.grad(
            outputs, parameters, self.direction, create_graph=True, allow_unused=True, materialize_grads=True
        )

    def product(self, vector: list[Tensor], *, keep: bool) -> Sequence[Tensor]:
        along = [v.to(t.dtype) for v, t in zip(vector, self.transposed, strict=True)]
        pairs = [(t, v) for t, v in zip(self.transposed, along, strict=True) if t.requires_grad]
        zero = [torch.zeros_like(p) for p in self.parameters]
        curved = [g for g in self.loss_gradient if g.requires_grad]
        if not pairs or not curved:
            return zero
        transposed, along = zip(*pairs, strict=True)
        moved = torch.autograd.grad(
            transposed, self.direction, along, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        pulled = torch.autograd.grad(
            self.loss_gradient, self.outputs, moved, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.autograd.grad(
            self.outputs, self.parameters, pulled, retain_graph=keep, allow_unused=True, materialize_grads=True
        )
