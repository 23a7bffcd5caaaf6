"""The functions of `rules.maths` for tensors and NumPy arrays, and the dtypes that steps are calculated in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.rules import maths

Array = np.ndarray[Any, np.dtype[Any]]

# By a parameter's dtype, the dtype of its state and of all calculation. A running average in sixteen bits would never change
# (0.999 v + 0.001 g² rounds back to v), so these use float32; complex parameters are calculated as pairs of reals.
COMPUTE_DTYPE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}


def _tensor_maximum(x: Tensor, y: Any) -> Tensor:
    return torch.maximum(x, y) if isinstance(y, Tensor) else x.clamp_min(y)


def _tensor_lerp(x: Tensor, y: Tensor, weight: float | Tensor) -> Tensor:
    return torch.lerp(x, y, weight.to(x.dtype) if isinstance(weight, Tensor) else weight)


def _tensor_add(x: Tensor, y: Tensor, c: float | Tensor) -> Tensor:
    return x + c * y.to(x.dtype) if isinstance(c, Tensor) else torch.add(x, y, alpha=c)


def _tensor_norm(x: Tensor) -> Tensor:
    # Squares of finite float32 numbers overflow from 1.8e19 on, in float64 they do not.
    dtype = torch.float64 if x.dtype is torch.float32 and x.device.type != "mps" else None
    return torch.linalg.vector_norm(x, dtype=dtype).to(x.dtype)


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


def uses_numpy(device: torch.device) -> bool:
    """Tell whether tensors on a device share memory with NumPy arrays, whose operations have half the overhead of torch's."""
    return device.type == "cpu"


def as_real(tensor: Tensor) -> Tensor:
    """Give a complex tensor as pairs of reals (`torch.view_as_real`), as PyTorch's optimisers do; a real one as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def norm_dtype(tensor: Tensor) -> torch.dtype | None:
    """Give the `dtype` argument for `vector_norm`: float64 on an accelerator that has it, where float32 sums could overflow."""
    if uses_numpy(tensor.device) or tensor.device.type == "mps":
        return torch.float32 if tensor.dtype.itemsize < 4 else None
    return torch.float64


def full_tensor(value: Any) -> Any:
    """Gather a DTensor from all processes (`DTensor.full_tensor`); `float` would give this process's part. Others as they are."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def copy_full(tensor: Any, full: Tensor) -> None:
    """Copy a full tensor, the same in all processes, into one that may be sharded: each process copies its own shard."""
    if hasattr(tensor, "full_tensor"):
        tensor.copy_(type(tensor).from_local(full, tensor.device_mesh).redistribute(placements=tensor.placements))
    else:
        tensor.copy_(full)


def exact_norm(tensor: Tensor) -> float:
    """Euclidean norm in float64 that neither over- nor underflows; not finite only where an element is not.

    >>> exact_norm(torch.tensor([3e200, 4e200], dtype=torch.float64)) / 1e200
    5.0
    """
    values = as_real(full_tensor(tensor.detach())).to("cpu", torch.float64)
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest == 0.0 or not np.isfinite(largest):
        return largest
    return largest * float(torch.linalg.vector_norm(values / largest))


def count_nonfinite(tensor: Tensor) -> int:
    """Count the elements that are NaN or infinite."""
    return tensor.numel() - int(torch.isfinite(full_tensor(tensor)).sum())
