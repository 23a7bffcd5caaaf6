"""The rules' few functions on tensors and arrays, and the precision that weights are calculated in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.rules import maths

Array = np.ndarray[Any, np.dtype[Any]]

# Sixteen bits hold a weight but not a running average (0.999 v + 0.001 g² stands still): calculation and state use 32.
COMPUTE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}


def _tensor_maximum(x: Tensor, y: Any) -> Tensor:
    return torch.maximum(x, y) if isinstance(y, Tensor) else x.clamp_min(y)


def _tensor_lerp(x: Tensor, y: Tensor, share: float | Tensor) -> Tensor:
    return torch.lerp(x, y, share.to(x.dtype) if isinstance(share, Tensor) else share)


def _tensor_add(x: Tensor, y: Tensor, c: float | Tensor) -> Tensor:
    return x + c * y.to(x.dtype) if isinstance(c, Tensor) else torch.add(x, y, alpha=c)


def _tensor_norm(x: Tensor) -> Tensor:
    # Squares of finite float32 numbers overflow from 1.8e19 on, in float64 they do not.
    wide = torch.float64 if x.dtype is torch.float32 and x.device.type != "mps" else None
    return torch.linalg.vector_norm(x, dtype=wide).to(x.dtype)


maths.sqrt.register(Tensor, torch.sqrt)
maths.sign.register(Tensor, torch.sign)
maths.power.register(Tensor, torch.pow)
maths.maximum.register(Tensor, _tensor_maximum)

maths.norm.register(Tensor, _tensor_norm)
maths.rms.register(Tensor, lambda x: torch.linalg.vector_norm(x) / max(1, x.numel()) ** 0.5)
maths.lerp.register(Tensor, _tensor_lerp)
maths.gemm.register(Tensor, lambda x, y, z, a, c: torch.addmm(x, y, z, beta=a, alpha=c))
maths.half.register(Tensor, Tensor.bfloat16)
maths.add.register(Tensor, _tensor_add)

maths.sqrt.register(np.ndarray, np.sqrt)
maths.sign.register(np.ndarray, np.sign)
maths.power.register(np.ndarray, np.power)
maths.where.register(np.ndarray, np.where)
maths.maximum.register(np.ndarray, np.maximum)
maths.norm.register(np.ndarray, lambda x: np.linalg.norm(x.ravel()))
maths.rms.register(np.ndarray, lambda x: np.sqrt(np.mean(x * x)))


def on_arrays(device: torch.device) -> bool:
    """Tell whether tensors of a device can be seen as NumPy's arrays, whose calls cost half of torch's."""
    return device.type == "cpu"


def real(tensor: Tensor) -> Tensor:
    """See a complex tensor as pairs of reals (a view), as PyTorch's optimisers do; a real one stays as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def wide(tensor: Tensor) -> torch.dtype | None:
    """Give the dtype to sum squares in: on an accelerator float64, which no float32 overflows, where there is one."""
    if on_arrays(tensor.device) or tensor.device.type == "mps":
        return torch.float32 if tensor.dtype.itemsize < 4 else None
    return torch.float64


def joined(value: Any) -> Any:
    """Give what all processes have together of a sharded number or tensor; `float` would give each one's own part."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def put(tensor: Any, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded: each process takes its own part of what all of them have."""
    if hasattr(tensor, "full_tensor"):
        tensor.copy_(type(tensor).from_local(whole, tensor.device_mesh).redistribute(placements=tensor.placements))
    else:
        tensor.copy_(whole)


def exact_norm(tensor: Tensor) -> float:
    """Euclidean norm in float64 that neither over- nor underflows; not finite only where an element is not.

    >>> exact_norm(torch.tensor([3e200, 4e200], dtype=torch.float64)) / 1e200
    5.0
    """
    values = real(joined(tensor.detach())).to("cpu", torch.float64)
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest == 0.0 or not np.isfinite(largest):
        return largest
    return largest * float(torch.linalg.vector_norm(values / largest))


def count_nonfinite(tensor: Tensor) -> int:
    """Count the elements that are NaN or infinite."""
    return tensor.numel() - int(torch.isfinite(joined(tensor)).sum())
