"""Values that objects carry, as plain entries that a checkpoint can hold, and back. Nothing is pickled.

An entry is None, a bool, a number, a text or a tensor, which stand for themselves; or a mapping whose "kind" names the type:
containers with their items, arrays, and random generators with their state.

Of a named tuple or a member of an enumeration the entry has the name of its class. `Classes` are those that are known by name:
what a name stands for is looked up there, and nothing is imported.
"""

from __future__ import annotations

import base64
import marshal
import random
import zlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum, Flag
from itertools import chain, islice
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.objects.standard_kinds import (
    decode_constant,
    decode_memory,
    encode_constant,
    encode_file,
    encode_memory,
    is_constant,
    is_memory,
    is_read_only_file,
    mark_constant,
    mark_file,
    mark_memory,
    put_into_file,
    put_into_memory,
)

ATOMS = (type(None), bool, int, float, str)
Classes = dict[str, type | None]
"""Classes of named tuples and enumerations, by their qualified names; None where two have the same."""
_SMALL = {type(None), bool, int, float}
SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset", deque: "deque"}
MAPPINGS: tuple[type, ...] = (dict, OrderedDict, defaultdict, Counter)
FACTORIES: dict[str, Callable[[], Any]] = {
    kind.__name__: kind for kind in (bool, int, float, str, list, tuple, set, dict, deque, Counter, OrderedDict)
}
"""What a `defaultdict` makes of a missing key, where it is a type of Python's own."""
MOST_ITEMS = 200_000  # of a container, with those of the containers in it; a longer one is not copied
TENSOR_ITEMS, TEXT_ITEM = 5, 64  # a tensor takes as long as so many numbers; so many characters as long as one
SAMPLED_ITEMS = 100  # of a container with too many, to notice a change
SAMPLE = 1 << 16  # elements of a tensor or array that are summed to notice that it has changed
DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


class NotPlainError(TypeError):
    """A value that has no entry: an object, an open file, a list that is too long."""


class TooDeepError(NotPlainError):
    """A container of so many levels that Python cannot go through it."""


def is_container(value: object) -> bool:
    """Tell whether a value is a list, tuple, set, deque or mapping of Python's own."""
    return type(value) in SEQUENCES or type(value) in MAPPINGS or is_named_tuple(value)


def is_named_tuple(value: object) -> bool:
    """Tell whether a value is a named tuple."""
    return isinstance(value, tuple) and hasattr(value, "_make")


def note_class(kind: type, classes: Classes) -> None:
    """Note the class of a named tuple or an enumeration under its name."""
    if issubclass(kind, Enum) or (issubclass(kind, tuple) and hasattr(kind, "_make")):
        known = classes.setdefault(kind.__qualname__, kind)
        if known is not kind:
            classes[kind.__qualname__] = None


def is_random(value: object) -> bool:
    """Tell whether a value is a random generator whose state can be read and set."""
    kinds = (torch.Generator, np.random.RandomState, np.random.Generator, np.random.BitGenerator)
    return isinstance(value, kinds) or type(value) is random.Random


def has_state_dict(value: object) -> bool:
    """Tell whether a value is an object, no module, that gives and takes its own state, as optimisers and schedules do."""
    kind = type(value)
    return (
        not isinstance(value, nn.Module)
        and callable(getattr(kind, "state_dict", None))
        and callable(getattr(kind, "load_state_dict", None))
    )


class Weight(NamedTuple):
    """How much is in a value: how many items, counted up to a little more than `MOST_ITEMS`, and bytes in tensors and arrays."""

    items: int
    bytes: int

    @property
    def is_too_large(self) -> bool:
        """Whether a container has too many items to be looked at and copied each time."""
        return self.items > MOST_ITEMS


def weigh(value: Any) -> Weight:
    """Tell how much is in a value, and in the containers in it.

    >>> weigh([1, [2, 3], "a" * 128])
    Weight(items=7, bytes=0)
    """
    items, size, left = 0, 0, [value]
    while left and items <= MOST_ITEMS:
        part = left.pop()
        if is_container(part):
            items += len(part)
            if items <= MOST_ITEMS:
                parts = chain(part, part.values()) if isinstance(part, Mapping) else part
                left += [inner for inner in cast("Iterable[Any]", parts) if type(inner) not in _SMALL]
        elif isinstance(part, Tensor | np.ndarray):
            items, size = items + TENSOR_ITEMS, size + _bytes_in(part)
        elif isinstance(part, str | bytes):
            items += len(part) // TEXT_ITEM
    return Weight(items, size)


def _bytes_in(value: Any) -> int:
    if isinstance(value, Tensor) and is_sparse(value):
        return sum(part.nbytes for part in _sparse_parts(value))
    return int(value.numel() * value.element_size() if isinstance(value, Tensor) else value.nbytes)


def is_sparse(value: Tensor) -> bool:
    """Tell whether a tensor is a sparse one of the kinds that have an entry: by coordinates, or compressed rows or columns."""
    return value.layout in _SPARSE and type(value) is Tensor and not value.is_meta


def _sparse_parts(value: Tensor) -> list[Tensor]:
    """Give the tensors that a sparse one consists of: its indices, and its values last."""
    value = value.detach()
    if value.layout is torch.sparse_coo:
        return [value._indices(), value._values()]
    if value.layout is torch.sparse_csr:
        return [value.crow_indices(), value.col_indices(), value.values()]
    return [value.ccol_indices(), value.row_indices(), value.values()]


_SPARSE = {torch.sparse_coo: "sparse_coo", torch.sparse_csr: "sparse_csr", torch.sparse_csc: "sparse_csc"}


def encode(value: Any, classes: Classes | None = None) -> Any:
    """Give the entry of a value: a copy, which does not change with it. Classes that it names are noted in `classes`.

    Raises NotPlainError where it has none.

    >>> encode([1, (2.5, "a")])
    {'kind': 'list', 'items': [1, {'kind': 'tuple', 'items': [2.5, 'a']}]}
    """
    if type(value) in ATOMS:
        return value
    classes = {} if classes is None else classes
    if isinstance(value, Tensor):
        return _encode_tensor(value)
    if isinstance(value, np.ndarray | np.generic):
        return _encode_array(value)
    if is_container(value):
        return _encode_container(value, classes)
    if is_random(value):
        return {"kind": "random", "state": encode(random_state(value))}
    if type(value) is bytes:
        return {"kind": "bytes", "text": base64.b64encode(value).decode()}
    if type(value) is complex:
        return {"kind": "complex", "items": [value.real, value.imag]}
    if isinstance(value, Enum):
        return _encode_enum(value, classes)
    if is_constant(value):
        return encode_constant(value)
    if is_memory(value):
        return encode_memory(value)
    if is_read_only_file(value):
        return encode_file(value)
    if has_state_dict(value):
        return {"kind": "state_dict", "state": encode(_without_order(value.state_dict()))}
    raise NotPlainError(f"a {type(value).__name__}")


def _encode_enum(value: Enum, classes: Classes) -> dict[str, Any]:
    note_class(type(value), classes)
    entry: dict[str, Any] = {"kind": "enum", "type": type(value).__qualname__}
    if isinstance(value, Flag):  # of which several together have no name of their own
        return {**entry, "value": int(value.value)}
    return {**entry, "name": value.name}


def _encode_tensor(value: Tensor) -> Any:
    if is_sparse(value):
        parts = [encode(part) for part in _sparse_parts(value)]
        unique = value.layout is not torch.sparse_coo or value.is_coalesced()
        return {
            "kind": "sparse",
            "layout": _SPARSE[value.layout],
            "parts": parts,
            "shape": list(value.shape),
            "unique": unique,
        }
    plain = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_meta
    if not plain or value.dtype not in DTYPES or value.is_quantized:
        raise NotPlainError(f"a tensor of {value.dtype}, {value.layout}")
    return value.detach().clone().resolve_conj().resolve_neg()


def _encode_array(value: np.ndarray[Any, Any] | np.generic) -> dict[str, Any]:
    array = np.array(value)
    if array.dtype.kind not in "biufcUS" or not array.dtype.isnative:
        raise NotPlainError(f"an array of {array.dtype}")
    data = torch.from_numpy(np.frombuffer(array.tobytes(), dtype=np.uint8).copy())
    kind = "array" if isinstance(value, np.ndarray) else "number"
    return {"kind": kind, "dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _encode_container(value: Any, classes: Classes) -> Any:
    if weigh(value).is_too_large:  # one that contains itself is
        raise NotPlainError(
            f"a {type(value).__name__} of more than {MOST_ITEMS:,} items, with those in it (or that holds itself)"
        )
    try:
        return _encode_items(value, classes)
    except RecursionError as error:
        raise TooDeepError(f"a {type(value).__name__} of very many levels") from error


def _encode_items(value: Any, classes: Classes) -> Any:
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value).items()
        items = [[_encode_item(key, classes), _encode_item(part, classes)] for key, part in pairs]
        return {"kind": "mapping", **_kind_of_mapping(value), "items": items}
    entry: dict[str, Any] = {"kind": "tuple" if isinstance(value, tuple) else SEQUENCES[type(value)]}
    if is_named_tuple(value):
        note_class(type(value), classes)
        entry["type"] = type(value).__qualname__
    elif type(value) is deque and value.maxlen is not None:
        entry["maxlen"] = value.maxlen
    return {**entry, "items": [_encode_item(part, classes) for part in value]}


def _kind_of_mapping(value: Any) -> dict[str, Any]:
    """Give what an entry says of a mapping that is no dict; a function of the user's that makes missing items has no name."""
    if type(value) is dict:
        return {}
    factory = value.default_factory if type(value) is defaultdict else None
    named = {"factory": factory.__name__} if isinstance(factory, type) and factory in FACTORIES.values() else {}
    own = {"factory": ""} if factory is not None and not named else {}
    return {"type": type(value).__name__, **named, **own}


def _encode_item(value: Any, classes: Classes) -> Any:
    if type(value) in ATOMS:  # as most are, in a list of losses that grows with every step
        return value
    return _encode_items(value, classes) if is_container(value) else encode(_item(value), classes)


def _item(value: Any) -> Any:
    """Give an item of a container. Raises NotPlainError where it is an object with a state, which has a place of its own."""
    if is_random(value) or has_state_dict(value):
        raise NotPlainError(f"a {type(value).__name__}")
    return value


def _without_order(state: Any) -> Any:
    """Give a state dict as a plain dict."""
    return dict(state) if isinstance(state, Mapping) else state


def decode(entry: Any, like: Any = None, classes: Classes | None = None) -> Any:
    """Give the value of an entry, a new one.

    Arguments:
        like: a value of the same place, which tells the type where the entry does not.
        classes: those that entries may name.

    Raises NotPlainError where a class is not known, or an object cannot be made anew.
    """
    if isinstance(entry, Tensor):
        return entry.detach().clone()
    if not isinstance(entry, Mapping):
        return entry
    return _decoders[entry["kind"]](entry, like, classes or {})


def _class_of(entry: Mapping[str, Any], like: Any, classes: Classes) -> Any:
    """Give the class that an entry names; that of `like` where it is called so too, or no name is given."""
    name = entry.get("type")
    if name is None or (name == type(like).__qualname__ and classes.get(name) is None):
        return type(like)
    known = classes.get(name)
    if known is None:
        raise NotPlainError(f"a {name}, a class that is not known")
    return known


def _decode_sparse(entry: Mapping[str, Any], like: Any, classes: Classes) -> Any:
    parts = [decode(part) for part in entry["parts"]]
    if entry["layout"] == "sparse_coo":
        unique = bool(entry["unique"])
        return torch.sparse_coo_tensor(parts[0], parts[1], entry["shape"], is_coalesced=unique, check_invariants=True)
    make = {"sparse_csr": torch.sparse_csr_tensor, "sparse_csc": torch.sparse_csc_tensor}[entry["layout"]]
    return make(parts[0], parts[1], parts[2], entry["shape"], check_invariants=True)


def _decode_mapping(entry: Mapping[str, Any], like: Any, classes: Classes) -> Any:
    held: Mapping[Any, Any] = cast("Mapping[Any, Any]", like) if type(like) in MAPPINGS else {}
    pairs = [
        ((name := decode(key, None, classes)), decode(part, held.get(name), classes)) for key, part in entry["items"]
    ]
    kind = entry.get("type") or (type(like).__name__ if type(like) in MAPPINGS else "dict")
    if kind == "defaultdict":
        factory = FACTORIES.get(entry.get("factory", ""))
        if "type" not in entry or (factory is None and "factory" in entry):
            if type(like) is not defaultdict:
                raise NotPlainError("a defaultdict with a function of your own")
            factory = cast("defaultdict[Any, Any]", like).default_factory
        return defaultdict(factory, pairs)
    return {"OrderedDict": OrderedDict, "Counter": Counter}.get(kind, dict)(dict(pairs))


def _decode_tuple(entry: Mapping[str, Any], like: Any, classes: Classes) -> Any:
    parts = _decode_all(entry, like, classes)
    kind = _class_of(entry, like if is_named_tuple(like) else (), classes)
    return tuple(parts) if kind is tuple else kind._make(parts)


def _decode_all(entry: Mapping[str, Any], like: Any, classes: Classes) -> list[Any]:
    """Give the items of a sequence."""
    return [decode(part, None, classes) for part in entry["items"]]


def _decode_deque(entry: Mapping[str, Any], like: Any, classes: Classes) -> Any:
    longest = entry.get("maxlen", like.maxlen if type(like) is deque else None)
    return deque(_decode_all(entry, like, classes), longest)


def _decode_array(entry: Mapping[str, Any], like: Any = None, classes: Classes | None = None) -> Any:
    data = entry["data"].cpu().numpy().tobytes()
    array = np.frombuffer(data, dtype=np.dtype(entry["dtype"])).reshape(entry["shape"]).copy()
    return array if entry["kind"] == "array" else array[()]


def _decode_enum(entry: Mapping[str, Any], like: Any, classes: Classes) -> Any:
    kind = _class_of(entry, like, classes)
    if not issubclass(kind, Enum):
        raise NotPlainError("a member of an enumeration that is not known")
    return kind(entry["value"]) if issubclass(kind, Flag) else kind[entry["name"]]


def _decode_object(entry: Mapping[str, Any], like: Any, classes: Classes) -> Any:
    raise NotPlainError("an object, which is not made anew")


_decoders: dict[str, Callable[[Mapping[str, Any], Any, Classes], Any]] = {
    "list": _decode_all,
    "set": lambda entry, like, classes: set(_decode_all(entry, like, classes)),
    "frozenset": lambda entry, like, classes: frozenset(_decode_all(entry, like, classes)),
    "deque": _decode_deque,
    "tuple": _decode_tuple,
    "mapping": _decode_mapping,
    "array": _decode_array,
    "number": _decode_array,
    "sparse": _decode_sparse,
    "bytes": lambda entry, like, classes: base64.b64decode(entry["text"]),
    "complex": lambda entry, like, classes: complex(*entry["items"]),
    "enum": _decode_enum,
    "constant": lambda entry, like, classes: decode_constant(entry),
    "memory": lambda entry, like, classes: decode_memory(entry, like),
    "file": _decode_object,
    "random": _decode_object,
    "state_dict": _decode_object,
}


def arrays_in(value: Any) -> dict[int, Any]:
    """Give the tensors and arrays that a container holds, by position; those of a mapping's values."""
    if not is_container(value) or isinstance(value, set | frozenset):
        return {}
    items = cast("Mapping[Any, Any]", value).values() if isinstance(value, Mapping) else value
    return {i: item for i, item in enumerate(items) if isinstance(item, Tensor | np.ndarray)}


def put_into(target: Any, entry: Any, keep: Mapping[int, Any] | None = None, classes: Classes | None = None) -> bool:
    """Give an object that can be changed the value of an entry; False where it cannot take it.

    Arguments:
        keep: items of a container, by position, that take their values themselves, since others may hold them too.
        classes: those that entries may name.
    """
    if isinstance(target, Tensor):
        same = isinstance(entry, Tensor) and target.shape == entry.shape and target.dtype == entry.dtype
        if same and not (target.requires_grad and target.grad_fn is not None):
            with torch.no_grad():
                target.copy_(entry)
        return same
    kind = entry.get("kind") if isinstance(entry, Mapping) else None
    if kind == "random" and is_random(target):
        set_random_state(target, decode(entry["state"]))
    elif kind == "memory":
        return put_into_memory(target, entry)
    elif kind == "file":
        return put_into_file(target, entry)
    elif kind == "state_dict" and has_state_dict(target):
        target.load_state_dict(decode(entry["state"]))
    elif kind == "array" and isinstance(target, np.ndarray):
        value = _decode_array(entry)
        if target.shape != value.shape or target.dtype != value.dtype or not target.flags.writeable:
            return False
        target[...] = value
    elif kind == "set" and type(target) is set:
        value = decode(entry, None, classes)
        target.clear()
        target.update(value)
    elif kind == "tuple" and isinstance(target, tuple):
        items = cast("tuple[Any, ...]", target)
        return len(items) == len(entry["items"]) and all(
            _stays(item, part, (keep or {}).get(i))
            for i, (item, part) in enumerate(zip(items, entry["items"], strict=True))
        )
    elif (kind == "mapping" and type(target) in MAPPINGS) or (
        kind in ("list", "deque") and type(target) is _KINDS[kind]
    ):
        _refill(target, entry, keep or {}, classes)
    else:
        return False
    return True


_KINDS: dict[str, type] = {"list": list, "deque": deque}


def _stays(item: Any, entry: Any, kept: Any) -> bool:
    """Tell whether an item of a tuple has the value of an entry, or has taken it."""
    return put_into(item, entry) if kept is item else type(item) in ATOMS and item == entry


def _refill(target: Any, entry: Mapping[str, Any], keep: Mapping[int, Any], classes: Classes | None) -> None:
    """Give a list, deque or mapping the items of an entry."""
    is_mapping = entry["kind"] == "mapping"
    entries = [pair[1] for pair in entry["items"]] if is_mapping else entry["items"]
    keys = [decode(pair[0], None, classes) for pair in entry["items"]] if is_mapping else []
    held = [target.get(key) for key in keys] if is_mapping else [None] * len(entries)
    values = [
        keep[i] if i in keep and put_into(keep[i], part) else decode(part, held[i], classes)
        for i, part in enumerate(cast("list[Any]", entries))
    ]
    target.clear()
    if is_mapping:
        target.update(dict(zip(keys, values, strict=True)))
    else:
        target.extend(values)


def random_state(generator: Any) -> Any:
    """Give the state of a random generator, as its own library gives it."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.state


def set_random_state(generator: Any, state: Any) -> None:
    """Set what `random_state` gave."""
    if isinstance(generator, torch.Generator | np.random.RandomState):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.state = state


def mark(value: Any, identity: bool = True, known: Collection[int] = ()) -> Any:
    """Give something that differs once a value has changed, and is cheaper than a copy; see `SAMPLE`.

    `identity`: another tensor of the same numbers counts as a change too; `known`: identities of tensors that have a place of
    their own.

    Raises NotPlainError where a container holds what has no entry, or has a place of its own: a copy in its stead would no
    longer be that parameter.
    """
    if type(value) in ATOMS:
        return (type(value), repr(value) if value != value else value)
    if isinstance(value, Tensor):
        found = _mark_tensor(value)
        return found if identity else found[-1]
    if isinstance(value, np.ndarray):
        return id(value), value.shape, _mark_array(value)
    if is_container(value):
        return mark_container(value, identity, known)
    if is_random(value):
        state = random_state(value)
        return (
            state
            if isinstance(state, tuple)
            else mark(state)
            if isinstance(state, dict)
            else zlib.crc32(state.numpy().tobytes())
        )
    if has_state_dict(value):
        return mark(_without_order(value.state_dict()), identity=False)
    if isinstance(value, np.generic | bytes | complex | Enum):
        return value
    if is_constant(value):
        return mark_constant(value)
    if is_memory(value):
        return mark_memory(value)
    if is_read_only_file(value):
        try:
            return mark_file(value)
        except OSError as error:
            raise NotPlainError("a file that is read by `next` or `for`, whose place cannot be told") from error
    raise NotPlainError(f"a {type(value).__name__}")


def _mark_tensor(value: Tensor) -> Any:
    if is_sparse(value):
        return id(value), tuple(_mark_tensor(part)[-1] for part in _sparse_parts(value))
    if value.layout is not torch.strided or value.is_meta or type(value) not in (Tensor, nn.Parameter):
        return (id(value),)
    flat = value.detach()
    if value.numel() > SAMPLE:
        step = max(1, value.numel() // SAMPLE)
        flat = (
            flat.reshape(-1)[::step] if value.is_contiguous() else flat[:: max(1, len(value) * SAMPLE // value.numel())]
        )
    version = 0 if value.is_inference() else value._version
    return id(value), value.data_ptr(), version, _sum(flat.contiguous().cpu())


def _sum(flat: Tensor) -> int:
    """Sum the bytes of a contiguous tensor on the CPU."""
    if flat.dtype is torch.bfloat16 or flat.numel() == 0 or flat.is_conj() or flat.is_neg():
        return zlib.crc32(flat.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy().data)
    return zlib.crc32(flat.numpy().data)


def _mark_array(value: np.ndarray[Any, Any]) -> Any:
    if value.dtype.kind == "O":
        return 0  # what its objects carry is not seen
    part = value if value.size <= 16 * SAMPLE else value.reshape(-1)[:: value.size // SAMPLE]
    return zlib.crc32(np.ascontiguousarray(part).tobytes()) if part.size else 0


def _mark_too_large(value: Any) -> Any:
    """Mark a container with too many items roughly; objects in a short one are looked at one by one."""
    parts: Iterable[Any] = cast("Mapping[Any, Any]", value).values() if isinstance(value, Mapping) else value
    if len(value) <= MOST_ITEMS and not all(map(_is_plain, parts)):
        raise NotPlainError(f"a {type(value).__name__}")
    return mark_roughly(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, nn.Parameter):
        return False
    return (
        type(value) in ATOMS
        or isinstance(value, Tensor | np.ndarray | np.generic | bytes | Enum)
        or is_container(value)
    )


def mark_roughly(value: Any) -> Any:
    """Give a mark of the length and some items of a container, of a list from all over it, of others the first."""
    items: Any = value[:: len(value) // SAMPLED_ITEMS + 1] if isinstance(value, list | tuple) else value
    return len(value), *map(_mark_item_roughly, islice(cast("Iterable[Any]", items), SAMPLED_ITEMS))


def _mark_item_roughly(value: Any) -> Any:
    if is_container(value):
        return len(value)
    return mark(value) if type(value) in _SMALL or isinstance(value, Tensor) else id(value)


def mark_container(value: Any, identity: bool = True, known: Collection[int] = (), weight: Weight | None = None) -> Any:
    """Give the mark of a container; see `mark`. `weight`: its own, where that is known."""
    if (weight or weigh(value)).is_too_large:
        return _mark_too_large(value)
    try:
        return zlib.crc32(marshal.dumps(value, 2)), len(value)
    except ValueError:  # not of plain values alone
        pass
    try:
        return _mark_items(value, identity, known)
    except RecursionError as error:
        raise TooDeepError(f"a {type(value).__name__} of very many levels") from error


def _mark_items(value: Any, identity: bool, known: Collection[int]) -> Any:
    if isinstance(value, Mapping):
        parts = [part for pair in cast("Mapping[Any, Any]", value).items() for part in pair]
    else:
        parts = list(value)
    if identity and any(isinstance(part, nn.Parameter) or id(part) in known for part in parts):
        raise NotPlainError(f"a {type(value).__name__} with parameters")
    return tuple(
        [_mark_items(part, identity, known) if is_container(part) else mark(_item(part), identity) for part in parts]
    )
