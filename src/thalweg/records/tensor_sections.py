"""A checkpoint's state split into JSON values and the tensors of each section, and joined again.

Where a tensor was, the values have a mark: `{"~tensor": "model/layer.weight"}` names the section and the tensor in
it; `{"~complex": …}` one whose real and imaginary parts were written as a last dimension of two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from thalweg.errors import CheckpointError
from thalweg.records import json_values, tensorfile
from thalweg.records.json_values import KeyPath


@dataclass(slots=True)
class SplitState:
    """A state split: values with a mark where each tensor was, and the tensors of each section.

    `aliases` maps a tensor's name to the name under which the same memory was met first. `name_of` and `used_names` serve
    the splitting only.
    """

    values: dict[str, object] = field(default_factory=dict[str, object])
    tensors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict[str, dict[str, torch.Tensor]])
    aliases: dict[str, str] = field(default_factory=dict[str, str])
    name_of: dict[object, str] = field(default_factory=dict[object, str])
    used_names: set[str] = field(default_factory=set[str])

    def replace_tensor(self, value: object, path: KeyPath) -> object:
        """Add a tensor to its section and give the mark for its place; the same memory a second time becomes an alias."""
        if not isinstance(value, torch.Tensor):
            return json_values.refuse(value, path)
        _refuse_unusual(value, path)
        identity = _identity(value)
        name = self._name(path)
        if identity in self.name_of:
            self.aliases[name] = self.name_of[identity]
        else:
            self.name_of[identity] = name
            self._add(name, torch.view_as_real(value.resolve_conj()) if value.is_complex() else value)
        return {"~complex" if value.is_complex() else "~tensor": self.name_of[identity]}

    def _add(self, name: str, tensor: torch.Tensor) -> None:
        section, _, within = name.partition("/")
        self.tensors.setdefault(section, {})[within] = tensor

    def _name(self, path: KeyPath) -> str:
        """The name for a path: section and keys joined by "/", with "~1" for a "/" within a key and "~0" for "~"."""
        keys = [key.replace("~", "~0").replace("/", "~1") for key in path[1:]]
        # A lone surrogate has no UTF-8, which safetensors asks for.
        first = f"{path[0]}/" + ("/".join(keys).encode("utf-8", "backslashreplace").decode() or "tensor")
        name, count = first, 1
        # The keys 1 and "1" side by side would have one name; "__metadata__" is reserved by safetensors.
        while name in self.used_names or name.endswith("/__metadata__"):
            count += 1
            name = f"{first}~{count}"
        self.used_names.add(name)
        return name


def split(state: Mapping[str, Any]) -> SplitState:
    """Split a state. Raises CheckpointError, with the path, for what a checkpoint cannot hold."""
    parts = SplitState()
    for section, value in state.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", section):
            raise CheckpointError(f"a section cannot be named {section!r}: use lower-case letters, digits and _.")
        try:
            parts.values[section] = json_values.encode(value, (section,), parts.replace_tensor)
        except json_values.NotJsonError as error:
            raise CheckpointError(f"the checkpoint cannot hold this: {error}") from error
    return parts


def _refuse_unusual(tensor: torch.Tensor, path: KeyPath) -> None:
    known = tensor.dtype in tensorfile.CODES or tensor.dtype in (torch.complex32, torch.complex64, torch.complex128)
    if not known or tensor.layout is not torch.strided or tensor.is_meta:
        kind = "without data (meta)" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
        raise json_values.NotJsonError(
            f"{json_values.path_text(path)} is a tensor {kind}: give a dense one of a common dtype."
        )


def _identity(tensor: torch.Tensor) -> object:
    if tensor.numel() == 0:
        return id(tensor)
    bits = (tensor.is_conj(), tensor.is_neg())
    return (str(tensor.device), tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), bits)


def join(content: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Join a state again from its values and its tensors by "section/name".

    >>> parts = split({"model": {"weight": torch.tensor([1.0, 2.0]), "tied": [1, None]}})
    >>> parts.values
    {'model': {'weight': {'~tensor': 'model/weight'}, 'tied': [1, None]}}
    >>> join(parts.values, {"model/weight": parts.tensors["model"]["weight"]})
    {'model': {'weight': tensor([1., 2.]), 'tied': [1, None]}}
    """
    complexes = dict[str, torch.Tensor]()

    def as_complex(name: str) -> torch.Tensor:
        return complexes.setdefault(name, torch.view_as_complex(tensors[name]))

    special = {"~tensor": tensors.__getitem__, "~complex": as_complex}
    return {section: json_values.decode(value, special) for section, value in content.items()}
