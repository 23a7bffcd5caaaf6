"""What a network's normalisations are given: inputs that hardly vary, outputs of tiny weights, attention that saturates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MOST_QUERIES = 64  # of an attention that are looked at
CERTAIN = 0.99  # probability of one key, from which on hardly any gradient passes an attention's softmax
_BATCH = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]
_INSTANCE = nn.modules.instancenorm._InstanceNorm  # pyright: ignore[reportPrivateUsage]


class Normalisation(NamedTuple):
    """One normalisation, or one attention, on a batch.

    - `name`: of the module; `kind`: its class, or "attention". `before`: the name of the layer whose output it normalises, ""
      where that is not the output of a layer with weights.
    - `variance`: the least of its inputs, over what it normalises together, and `eps` what it adds to it. Of an attention NaN.
    - `certain`: the share of an attention's queries that look at one key only, of those that may look at more; else 0.
    """

    name: str
    kind: str
    before: str = ""
    variance: float = math.nan
    eps: float = 0.0
    certain: float = 0.0


def normalisations(model: nn.Module, call: Callable[[], Any]) -> tuple[Normalisation, ...]:
    """Call the model on a batch, and give what its normalisation layers and attentions were given, in the order of their calls.

    Attention is seen where it goes by `scaled_dot_product_attention`.

    Arguments:
        model: the network. Its hooks are as before afterwards; its mode is the caller's choice.
        call: calls it.

    >>> layer = nn.LayerNorm(2)
    >>> found = normalisations(layer, lambda: layer(torch.tensor([[1.0, 3.0]])))
    >>> found[0].kind, found[0].variance
    ('LayerNorm', 1.0)
    """
    found, made, handles = list[Normalisation](), list[tuple[Tensor, str]](), list[Any]()
    names = {module: name for name, module in model.named_modules()}

    def after_layer(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made.append((output, names[module]))

    def before_norm(module: nn.Module, given: Any) -> None:
        if given and isinstance(given[0], Tensor) and given[0].numel() > 1:
            before = next((name for tensor, name in reversed(made) if tensor is given[0]), "")
            variance, eps = float(_variance(module, given[0].detach().float())), getattr(module, "eps", None)
            found.append(Normalisation(names[module], type(module).__name__, before, variance, float(eps or 0.0)))

    for module in model.modules():
        if isinstance(module, _BATCH | _INSTANCE | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
            handles.append(module.register_forward_pre_hook(before_norm))
        elif isinstance(getattr(module, "weight", None), Tensor):
            handles.append(module.register_forward_hook(after_layer))
    try:
        with _Attention(found):
            call()
    finally:
        for handle in handles:
            handle.remove()
        made.clear()
    return tuple(found)


def _variance(module: nn.Module, given: Tensor) -> Tensor:
    """Give the least variance of what is normalised together."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        rows = given.flatten(-len(module.normalized_shape))
        spread = rows.square().mean(-1) if isinstance(module, nn.RMSNorm) else rows.var(-1, correction=0)
    elif isinstance(module, nn.GroupNorm):
        spread = given.reshape(len(given), module.num_groups, -1).var(-1, correction=0)
    else:
        dimensions = [0, *range(2, given.dim())] if isinstance(module, _BATCH) else [*range(2, given.dim())]
        spread = given.var(dimensions or [0], correction=0)
    return spread.min()


class _Attention(TorchFunctionMode):
    """Within, calls of attention are noted."""

    def __init__(self, found: list[Normalisation]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not torch.compiler.is_compiling():
            share = _certain(*args, **kwargs)
            self.found.append(Normalisation("", "attention", certain=share))
        return func(*args, **kwargs)


def _certain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> float:
    with torch.no_grad():
        if query.shape[:-2] != key.shape[:-2]:  # grouped heads
            return 0.0
        # Some queries of one example, spread over them, tell; all scores at once may not fit into memory.
        rows = torch.linspace(0, query.shape[-2] - 1, min(MOST_QUERIES, query.shape[-2]), device=query.device).long()
        one, keys = query.detach().float(), key.detach().float()
        if query.dim() > 3:
            one, keys = one[:1], keys[:1]
        scores = one[..., rows, :] @ keys.transpose(-2, -1)
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
        allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=scores.device)
        if is_causal:
            allowed = allowed.tril()
        elif attn_mask is not None:
            mask = attn_mask[:1] if query.dim() > 3 and attn_mask.dim() == query.dim() else attn_mask
            allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            if mask.dtype != torch.bool:
                mask = mask.expand(*mask.shape[:-2], query.shape[-2], key.shape[-2])
                scores = scores + mask[..., rows, :]
            allowed = allowed.expand(*allowed.shape[:-2], query.shape[-2], key.shape[-2])
        allowed = allowed[..., rows, :]
        probability = scores.masked_fill(~allowed, -torch.inf).softmax(-1).amax(-1)
        several = (allowed.sum(-1) > 1).expand_as(probability)
        return float((probability[several] > CERTAIN).float().mean()) if several.any() else 0.0
