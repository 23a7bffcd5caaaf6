"""Starting layers of a network anew, so that each unit's signal has mean zero and variance one, or another, on a batch.

Layer by layer, in the order of a forward pass, as Mishkin and Matas 2015 (arXiv:1511.06422) scale whole layers, but unit by unit
and with the mean taken out, as Salimans and Kingma 2016 (arXiv:1602.07868, section 3) and Krähenbühl et al. 2015
(arXiv:1511.06856). What the weights say of directions stays, where a unit varies at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]
NORMALISATIONS = (_BATCH, nn.LayerNorm, nn.GroupNorm)
STILL = 1e-4  # of the layer's usual deviation: a unit that varies less says nothing, and gets new weights


def restart_layers(
    model: nn.Module,
    call: Callable[[], Any],
    names: Collection[str],
    generator: torch.Generator,
    *,
    variance: float = 1.0,
) -> tuple[str, ...]:
    """Start layers anew, and give the names of those that were.

    Arguments:
        model: the network, whose weights are changed in place.
        call: calls it on a batch, of at least two examples; its own buffers and modes are the caller's business.
        names: of layers, linear ones, convolutions, normalisations and recurrent ones, which are drawn as PyTorch draws them;
            others stay as they are, and so do those that are frozen, share their weights with another layer, or have weights of
            zero.
        generator: of the new weights.
        variance: of each unit's signal, of linear layers and convolutions.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> x = torch.randn(64, 2)
    >>> restart_layers(model, lambda: model(x), ["0"], torch.Generator().manual_seed(0))
    ('0',)
    >>> torch.allclose(model[0](x).var(0, correction=0), torch.ones(3), atol=1e-3)
    True
    """
    handles, restarted = list[Any](), list[str]()
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for name, module in model.named_modules():
        if name in names and isinstance(module, nn.RNNBase) and _are_its_own(module, owners):
            _draw_anew(module, generator)
            restarted.append(name)
        weight = getattr(module, "weight", None)
        if name not in names or not isinstance(weight, nn.Parameter) or not weight.requires_grad:
            continue
        if owners[id(weight)] > 1 or not weight.any():  # shared with another layer, or zero on purpose
            continue
        if isinstance(module, NORMALISATIONS):
            restarted.append(name)
            with torch.no_grad():
                weight.fill_(1.0)
                if module.bias is not None:
                    module.bias.zero_()
        elif isinstance(module, LAYERS):

            def restart(module: nn.Module, given: Any, keywords: Any, output: Any, name: str = name) -> Any:
                if name in restarted:
                    return output
                restarted.append(name)
                _standardise(module, given[0] if given else keywords["input"], output, generator, variance**0.5)
                return type(module).forward(module, *given, **keywords)

            handles.append(module.register_forward_hook(restart, with_kwargs=True))
    try:
        with torch.no_grad():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return tuple(restarted)


def _are_its_own(module: nn.Module, owners: Counter[int]) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and all(p.requires_grad and owners[id(p)] == 1 for p in own)


def _draw_anew(module: nn.RNNBase, generator: torch.Generator) -> None:
    """Draw weights and biases uniformly within 1 / sqrt(hidden_size), as PyTorch's recurrent layers begin."""
    bound = module.hidden_size**-0.5
    with torch.no_grad():
        for p in module.parameters(recurse=False):
            p.copy_(torch.empty(p.shape).uniform_(-bound, bound, generator=generator))


def forget(optimizer: torch.optim.Optimizer, modules: Iterable[nn.Module]) -> None:
    """Let an optimiser begin anew with the modules' weights, counts of steps included."""
    for module in modules:
        for parameter in module.parameters(recurse=False):
            optimizer.state.pop(parameter, None)


def _standardise(module: Any, given: Tensor, output: Tensor, generator: torch.Generator, target: float) -> None:
    mean, deviation = _figures(module, output)
    if not output.isfinite().all():  # of such a batch nothing is learnt of a layer
        return
    usual = deviation.median()
    still = ~(deviation > STILL * usual) | ~deviation.isfinite()
    if still.any():
        fan_in = module.weight[0].numel()
        drawn = torch.randn(module.weight.shape, generator=generator).to(module.weight) * fan_in**-0.5
        module.weight[still] = drawn[still]
        if module.bias is not None:
            module.bias[still] = 0.0
        mean, deviation = _figures(module, type(module).forward(module, given))
    deviation = torch.where(deviation > 0, deviation / target, torch.ones_like(deviation))
    module.weight.div_(deviation.view(-1, *[1] * (module.weight.dim() - 1)).to(module.weight.dtype))
    if module.bias is not None:
        module.bias.sub_(mean.to(module.bias.dtype)).div_(deviation.to(module.bias.dtype))


def _figures(module: nn.Module, output: Tensor) -> tuple[Tensor, Tensor]:
    """Give mean and deviation of each unit, over examples and places."""
    dimension = 1 if not isinstance(module, nn.Linear) and output.dim() > 2 else output.dim() - 1
    others = [one for one in range(output.dim()) if one != dimension]
    values = output.double()
    return values.mean(others), values.var(others, correction=0).sqrt()
