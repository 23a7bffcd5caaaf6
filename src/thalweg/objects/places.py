"""Where objects of the user's keep state: attributes, captured variables, globals that a function uses, lists and dicts.

Only what lies there is looked at: of the user's code nothing is called but `state_dict` and `get_extra_state`.
"""

from __future__ import annotations

import argparse
import builtins
import functools
import inspect
import io
import operator
import queue
import threading
import types
import weakref
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from enum import Enum, EnumType
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.utils import lazy_property
from torch.optim import Optimizer

from thalweg.objects.code import TASK_FILES, cells_of, is_library, names_in
from thalweg.objects.modules import Structure, hooks_of
from thalweg.objects.standard_kinds import (
    is_constant,
    is_memory,
    is_read_only_file,
    mark_constant,
    shared_memory_of,
)
from thalweg.objects.values import (
    ATOMS,
    Classes,
    NotPlainError,
    TooDeepError,
    has_state_dict,
    is_container,
    is_named_tuple,
    is_random,
    mark,
    mark_container,
    mark_roughly,
    note_class,
    weigh,
)

MOST_OBJECTS = 20_000  # that are looked at: what is reached from a large program's objects may be all of it
MOST_ITEMS_IN_ALL = 1_000_000  # of containers, that are looked at each time; of those beyond only some are
LONGEST_PATH = 1_000  # characters: what lies deeper is not looked at
_OWN = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_compiled_call_impl"}  # nn.Module's
_OF_SCRIPTED = {"training", "_is_full_backward_hook"}  # that a module of TorchScript holds in its compiled part
_FUNCTIONS = (types.FunctionType, classmethod, staticmethod, property)
WEIGHTS = "._parameters"  # ends the paths under which names of modules' weights are among links
_HOOKS = {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"}
_BAGS = (
    types.SimpleNamespace,
    argparse.Namespace,
    ChainMap,
    UserDict,
    UserList,
    queue.Queue,
    threading.local,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    weakref.WeakSet,
    Distribution,
    Transform,
)  # of Python and PyTorch that hold what one puts in


class Place(NamedTuple):
    """A place that holds a value: `holder` is what it is in, and `how` by what it is set.

    `how` is "item" (holder[key] = value), "attribute" (setattr), "scripted" (setattr too, of a module of TorchScript, which gives
    a copy of a list or dict each time), "cell", or "" where it cannot be given another object. `marked`
    is the value's mark, and `problem` says why it has none: its state cannot be kept. `alias` is the path under which the same
    object was found before.
    """

    path: str
    value: Any
    holder: Any
    key: Any
    how: str
    marked: Any = None
    problem: str = ""
    alias: str = ""

    def present(self) -> Any:
        """Give the object that the place has now."""
        if self.how == "item":
            return self.holder[self.key]
        if self.how in ("attribute", "scripted"):
            return getattr(self.holder, self.key)
        return self.holder.cell_contents if self.how == "cell" else self.value

    def has_its_object(self) -> bool:
        """Tell whether the place still has the object that it was found with; a number or text may be another one."""
        is_class = isinstance(self.holder, type)  # where a descriptor would give something else
        now = vars(self.holder).get(self.key) if is_class else self.present()
        return now is self.value or (type(now) in ATOMS and type(self.value) in ATOMS)

    def put(self, value: Any) -> bool:
        """Give the place another object; False where it takes none."""
        if self.how == "item":
            self.holder[self.key] = value
        elif self.how in ("attribute", "scripted"):
            setattr(self.holder, self.key, value)
        elif self.how == "cell":
            self.holder.cell_contents = value
        return bool(self.how)

    def remove(self) -> None:
        """Remove an attribute that came to be since."""
        if self.how == "item" and isinstance(self.holder, dict):
            self.holder.pop(self.key, None)


class Held(NamedTuple):
    """The objects that places had, the items of containers of objects, the names of objects' attributes, what modules
    consisted of, and the functions of classes: to be given again, whatever was put there since."""

    places: list[Place]
    containers: list[tuple[Any, list[Any]]]
    names: list[tuple[dict[str, Any], set[str]]]
    structures: list[Structure]
    classes: list[tuple[type, dict[str, Any]]]

    def give_again(self) -> None:
        """Give every place its object again; what the objects carry themselves is left as it is."""
        for container, items in self.containers:
            _refill(container, items)
        for place in self.places:
            _, value, holder, key, how, *_ = place
            if how == "item" and type(holder) is dict and holder.get(key) is value:  # as most are
                continue
            with suppress(Exception):  # what the place was in cannot take it any more
                if not place.has_its_object():
                    place.put(value)
        for attributes, names in self.names:
            for name in attributes.keys() - names:
                del attributes[name]
        for structure in self.structures:
            structure.give_again()
        for kind, functions in self.classes:
            now = _functions_of(kind)
            with suppress(Exception):  # of a class that takes no attributes
                for name in now.keys() - functions.keys():
                    delattr(kind, name)
                for name, function in functions.items():
                    if now.get(name) is not function:
                        setattr(kind, name, function)


def _functions_of(kind: type) -> dict[str, Any]:
    """Give what a class has that is called: functions, class and static methods, properties."""
    return {name: part for name, part in vars(kind).items() if isinstance(part, _FUNCTIONS)}


def items_of(container: Any) -> list[Any]:
    """Give the items of a container themselves; of a mapping its pairs."""
    return list(cast("Any", container.items() if isinstance(container, Mapping) else container))


def _refill(container: Any, items: list[Any]) -> None:
    """Give a container of objects these very objects again."""
    now = items_of(container)
    if len(now) == len(items) and all(map(_is_same_item, now, items)):
        return
    with suppress(Exception):  # of a key of the user's that cannot be hashed any more
        if isinstance(container, list | deque | set | dict):
            container.clear()
        if isinstance(container, list | deque):
            container.extend(items)
        elif isinstance(container, set | dict):
            container.update(items if isinstance(container, set) else dict(items))


def _is_same_item(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other) == 2:  # a pair of a mapping
        return one is other or all(map(operator.is_, one, other))
    return one is other


class Still:
    """What a module of a library holds besides its submodules, where that is plain values and known tensors alone.

    Most modules are such and never change; to see that they have not costs far less than to visit all their attributes.
    """

    def __init__(self, module: nn.Module) -> None:
        self.values = list(module.__dict__.values())
        self.parameters = list(module._parameters.values())
        self.flags = [parameter is not None and parameter.requires_grad for parameter in self.parameters]
        self.buffers = list(module._buffers.values())

    def holds(self, module: nn.Module) -> bool:
        """Tell whether the module still holds the same objects, and nothing was hooked in or hung on its weights."""
        return (
            not any(map(module.__dict__.get, _HOOKS))
            and not any(vars(p) or hooks_of(p) for p in self.parameters if p is not None)
            and _are(self.values, module.__dict__.values())
            and _are(self.parameters, module._parameters.values())
            and _are(self.buffers, module._buffers.values())
            and self.flags == [parameter is not None and parameter.requires_grad for parameter in self.parameters]
        )


class _Never(Still):
    def __init__(self) -> None: ...

    def holds(self, module: nn.Module) -> bool:
        return False


_never = _Never()


def _is_iterator(value: object) -> bool:
    """Tell whether a value gives its items one after the other, and does not tell how far it is.

    Such are generators, iterators of containers and of `itertools`, a loader's, a `csv.reader`. A file is none here: one that is
    written to is not read.
    """
    return (
        isinstance(value, Iterator | queue.SimpleQueue)
        and not isinstance(value, io.IOBase)
        and not has_state_dict(value)
    )


def _called(kind: type) -> str:
    """Give what somebody who wrote `iter(loader)` calls the type of an iterator."""
    return "an iterator of a DataLoader" if kind.__module__.startswith("torch.utils.data") else f"a {kind.__name__}"


def _are(ones: list[Any], others: Any) -> bool:
    return len(ones) == len(others) and all(map(operator.is_, ones, others))


def still_modules(roots: Mapping[str, Any], known: set[int]) -> dict[int, Still]:
    """Give the modules of libraries, by identity, of which `Still` can tell whether they have changed."""
    found: dict[int, Still] = {}
    for root in roots.values():
        for module in root.modules() if isinstance(root, nn.Module) else ():
            tensors = (*module._parameters.values(), *module._buffers.values())
            if (
                is_library(type(module).__module__)
                and not _scripted_names(module)
                and all(type(v) in ATOMS or (n[:1] == "_" and not (n in _HOOKS and v)) for n, v in vars(module).items())
                and all(tensor is None or (id(tensor) in known and not hooks_of(tensor)) for tensor in tensors)
            ):
                found[id(module)] = Still(module)
    return found


class Holder(NamedTuple):
    """What an attribute, or a global of a module, that is not there yet can be put into: `owner`'s dict of them.

    `names`, where given, are the only ones that it takes: of a module's globals those that some function uses.
    """

    attributes: dict[str, Any]
    owner: Any
    names: set[str] | None = None

    def takes(self, name: str) -> bool:
        """Tell whether the user's code may have made an attribute of this name that a new object does not have yet.

        A checkpoint says the name, which anybody may have written: it is to hide no method, weight or built-in function, and to
        replace nothing that is there.
        """
        if not name.isidentifier() or name.startswith("__") or name in self.attributes:
            return False
        if self.names is not None:
            return name in self.names and not hasattr(builtins, name)
        if isinstance(self.owner, nn.Module):
            parts = (self.owner._parameters, self.owner._buffers, self.owner._modules)
            if name in _OWN or any(name in part for part in parts):
                return False
        of_class = inspect.getattr_static(type(self.owner), name, None)
        if isinstance(of_class, lazy_property):  # of a distribution, which keeps its value in the attribute
            return True
        return type(of_class) in ATOMS or not (callable(of_class) or hasattr(type(of_class), "__get__"))


class ExtraState:
    """What a module gives as its extra state, as an object that gives and takes its own state."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def state_dict(self) -> Any:
        """Give the extra state."""
        return self._module.get_extra_state()

    def load_state_dict(self, state: Any) -> None:
        """Set the extra state."""
        self._module.set_extra_state(state)


class Finder:
    """Goes through objects and what they hold, and gives the places that hold state.

    Arguments:
        roots: the objects, by the names that their paths begin with.
        known: identities of tensors that are somebody else's business, such as a model's parameters.
        still: modules that are passed over while they are as they were; see `still_modules`.
        buffers: paths of registered buffers that are as much somebody else's business, whatever tensor they have become.
        classes: is given the classes of named tuples and enumerations that are met, by name.

    `holders` are, once `places` is through, the objects with attributes, and the modules with globals, by the beginning of their
    paths; `of_objects` the places of containers that hold objects; `optimizers` those that were found. `links` tells, by path,
    which objects, functions and classes of the user's hang together how: of each its kind, and the path under which the same
    one was found before.
    """

    def __init__(
        self,
        roots: Mapping[str, Any],
        known: set[int] | None = None,
        still: Mapping[int, Still] | None = None,
        buffers: set[str] | None = None,
        classes: Classes | None = None,
    ) -> None:
        self.roots, self.known, self.still = roots, known or set(), still or {}
        self.classes: Classes = {} if classes is None else classes
        self.buffers = set(buffers or ())
        self.holders: dict[str, Holder] = {}
        self.of_objects: list[Place] = []
        self.optimizers: list[Optimizer] = []
        self._classes: list[type] = []  # of the user's, that objects are of
        self.links: dict[str, list[tuple[str, str]]] = {}
        self._linked: dict[int, str] = {}  # the first paths of these, by identity
        self._ends: dict[str, tuple[int, ...]] = {}  # how much had been found once a root was through
        self._paths: dict[str, list[tuple[int, Any]]] = {}
        self._seen = set[int]()
        self._first_paths: dict[int, str] = {}  # of tensors, arrays and containers of plain values, by identity
        self._items_left = MOST_ITEMS_IN_ALL
        self._found: list[Place] = []
        self._visited: list[Place] = []
        self._next: list[Place] = []

    def places(self) -> list[Place]:
        """Give every place that holds state, each object's once, in the same order every time."""
        if self._ends:
            return self._found
        for name, root in self.roots.items():
            left = [Place(name, root, None, None, "")]
            while left:  # no recursion: a linked list may have any length
                self._look(left.pop())
                left += reversed(self._next)
                self._next.clear()
            parts = (self._found, self._visited, self.of_objects, self.holders, self._classes)
            self._ends[name] = tuple(map(len, parts))
        return self._found

    @property
    def is_cut_short(self) -> bool:
        """Whether there were more objects than are looked at."""
        return len(self._seen) > MOST_OBJECTS

    def hold(self, only: Collection[str] = ()) -> Held:
        """Give, once `places` is through, what all places have now, or those first reached from the roots `only`."""
        held, before = Held([], [], [], [], []), (0, 0, 0, 0, 0)
        holders = list(self.holders.values())
        for name, after in self._ends.items():
            found, visited, containers, attributes, classes = map(slice, before, after)
            before = after
            if only and name not in only:
                continue
            held.places.extend(place for place in (*self._found[found], *self._visited[visited]) if place.how)
            held.containers.extend((place.value, items_of(place.value)) for place in self.of_objects[containers])
            held.names.extend((h.attributes, {*h.attributes}) for h in holders[attributes] if h.names is None)
            modules = [h.owner for h in holders[attributes] if isinstance(h.owner, nn.Module)]
            held.structures.append(Structure(modules, buffers=False))
            held.classes.extend((kind, _functions_of(kind)) for kind in self._classes[classes])
        return held

    def bearers(self) -> list[Place]:
        """Give the places, once `places` is through, whose value is an object that is no state by itself, but may bear some.

        None are given where there were more objects than are looked at.
        """
        if self.is_cut_short:
            return []
        found = {(id(place.holder), place.key) for place in self._found}
        return [place for place in self._visited if (id(place.holder), place.key) not in found]

    def _visit(self, place: Place) -> None:
        """Let a place be looked at next, after those that were let before it."""
        self._next.append(place)
        if place.how:
            self._visited.append(place)

    def _add(self, place: Place) -> None:
        """Add a place, once; where its path is another's too, as of modules of one name, it is followed by a number."""
        same_path = self._paths.setdefault(place.path, [])
        identity = (id(place.value), None) if place.holder is None else (id(place.holder), place.key)
        if identity in same_path:
            return
        same_path.append(identity)
        number = len(same_path)
        found = place if number == 1 else place._replace(path=f"{place.path} ({number})")
        self._found.append(found)
        if isinstance(place.value, Tensor | np.ndarray) or is_container(place.value):
            self._first_paths.setdefault(id(place.value), found.path)

    def _add_again(self, place: Place) -> None:
        """Add a place of an object that was found before: it is to be one object there again."""
        first = self._first_paths.get(id(place.value), place.path)
        if place.how and first != place.path:
            self._add(place._replace(marked=("alias", first), alias=first))

    def _look(self, place: Place) -> None:
        value, kind = place.value, type(place.value)
        if kind in ATOMS or isinstance(value, np.generic | bytes | complex | Enum):
            if place.how:
                self._add(place._replace(marked=value))
            return
        if is_constant(value):
            if place.how:
                self._add(place._replace(marked=mark_constant(value)))
            return
        if isinstance(value, type):
            note_class(value, self.classes)
            self._link(place, value.__qualname__)
            self._class(value)
            return
        if self.is_cut_short:
            return
        if id(value) in self.known:
            if place.how:
                self.links.setdefault(place.path, []).append(("weight", str(id(value))))
            return
        if id(value) in self._seen:
            if id(value) in self._linked:
                self._link(place, self._kind(value))
            self._add_again(place)
            return
        if kind_of_link := self._kind(value):
            self._link(place, kind_of_link)
        self._seen.add(id(value))
        if len(place.path) > LONGEST_PATH:
            start = f"{place.path[:30]}…"  # said once of all that lies there
            self._add(Place(start, None, None, None, "", problem="nested in very many levels"))
        elif isinstance(value, Tensor | np.ndarray) or is_random(value) or is_memory(value) or is_read_only_file(value):
            self._add(self._marked(place))
            if isinstance(value, np.ndarray) and value.dtype.kind == "O":
                self._array_of_objects(value, place.path)
            if isinstance(value, Tensor):
                self._attributes_of(value, place.path)
                if value.is_leaf and value.requires_grad:  # which may add up over steps
                    self._visit(Place(f"{place.path}.grad", value.grad, value, "grad", "attribute"))
                elif value.retains_grad:
                    self._add(
                        Place(
                            f"{place.path}.grad",
                            None,
                            None,
                            None,
                            "",
                            problem="the gradient of a tensor that was computed",
                        )
                    )
        elif is_container(value):
            self._container(place)
        elif isinstance(value, nn.Module):
            self._module(place)
        elif isinstance(value, types.FunctionType):
            self._function(place)
        elif isinstance(value, types.MethodType):
            self._visit(place._replace(value=value.__self__, how=""))
            self._visit(place._replace(value=value.__func__, how=""))
        elif isinstance(value, functools.partial):
            self._partial(place)
        elif (memory := shared_memory_of(value)) is not None:
            self._visit(place._replace(value=memory, how=""))
        elif isinstance(value, memoryview):
            self._visit(place._replace(value=value.obj, how=""))
        elif not is_library(kind.__module__) or isinstance(value, _BAGS):
            self._object(place)
        elif kind.__name__ == "_lru_cache_wrapper" and hasattr(value, "__wrapped__"):
            self._visit(place._replace(value=value.__wrapped__, how=""))
        elif _is_iterator(value):
            self._add(place._replace(problem=f"{_called(kind)}, whose place cannot be read"))
        elif has_state_dict(value):
            self._add(self._marked(place))
            if isinstance(value, Optimizer):  # its state_dict has all but the weights that it moves
                self._optimizer(value, place.path)

    def _link(self, place: Place, kind: str) -> None:
        """Note what hangs at a place."""
        first = self._linked.setdefault(id(place.value), place.path)
        self.links.setdefault(place.path, []).append((kind, "" if first == place.path else first))

    @staticmethod
    def _kind(value: Any) -> str:
        """Give the kind of an object that hangs together with others by what refers to it; "" of any other."""
        if isinstance(value, types.FunctionType | types.MethodType):
            return str(value.__qualname__)
        if isinstance(value, nn.Module | Optimizer) or not is_library(type(value).__module__):
            return type(value).__qualname__
        return ""

    def _attributes_of(self, tensor: Tensor, path: str) -> None:
        """Visit what the user's code has hung on a tensor."""
        if attributes := vars(tensor):
            self.holders[f"{path}."] = Holder(attributes, tensor)
            for name in [name for name in attributes if not name.startswith("_")]:
                self._entry(f"{path}.{name}", attributes, name)

    def _optimizer(self, optimizer: Optimizer, path: str) -> None:
        """Visit the weights that an optimiser of the user's moves: they may stand nowhere else."""
        self.optimizers.append(optimizer)
        for number, group in enumerate(optimizer.param_groups):
            for i, parameter in enumerate(group["params"]):
                self._visit(Place(f"{path}.param_groups[{number}].params[{i}]", parameter, None, None, ""))

    def _array_of_objects(self, array: np.ndarray[Any, Any], path: str) -> None:
        for index in islice(np.ndindex(array.shape), MOST_OBJECTS):
            where = ", ".join(map(str, index))
            self._visit(Place(f"{path}[{where}]", array[index], array, index, "item"))

    def _marked(self, place: Place) -> Place:
        try:
            return place._replace(marked=mark(place.value))
        except NotPlainError as error:
            return place._replace(problem=f"{error}")
        except Exception as error:  # a `state_dict` of the user's
            return place._replace(problem=f"{type(error).__name__}: {error}")

    def _entry(self, path: str, holder: dict[str, Any], name: str) -> None:
        """Visit an entry of a dict."""
        value = holder[name]
        if type(value) in ATOMS:  # as most are
            self._add(Place(path, value, holder, name, "item", value))
        else:
            self._visit(Place(path, value, holder, name, "item"))

    def _container(self, place: Place) -> None:
        weight = weigh(place.value)
        self._items_left -= weight.items
        if self._items_left < 0:
            self._add(place._replace(marked=mark_roughly(place.value)))
            return
        try:
            self._add(place._replace(marked=mark_container(place.value, known=self.known, weight=weight)))
            return
        except TooDeepError as error:
            self._add(place._replace(problem=f"{error}"))
            return
        except NotPlainError:
            pass  # it holds objects, which are looked at one by one
        value = place.value
        self.of_objects.append(place)
        items = enumerate(value) if not isinstance(value, Mapping) else cast("Mapping[Any, Any]", value).items()
        how = "" if isinstance(value, tuple | set | frozenset) or is_named_tuple(value) else "item"
        for number, (key, part) in enumerate(list(items)):
            self._visit(Place(f"{place.path}[{_key(key, number)}]", part, value, key, how))

    def _module(self, place: Place) -> None:
        module, path = cast("nn.Module", place.value), place.path
        self.holders[f"{path}."] = Holder(module.__dict__, module)
        if not isinstance(module, torch.jit.ScriptModule) and module._parameters:
            self.links[f"{path}{WEIGHTS}"] = [(name, str(id(weight))) for name, weight in module._parameters.items()]
        if not self.still.get(id(module), _never).holds(module):
            self._module_itself(module, path)
        for name, child in module._modules.items():
            if child is not None:
                self._visit(Place(f"{path}.{name}", child, None, None, ""))

    def _module_itself(self, module: nn.Module, path: str) -> None:
        """Visit what a module holds besides its submodules."""
        for name, value in list(module.__dict__.items()):
            if name in _HOOKS:
                for number, hook in enumerate(list(value.values())):
                    self._visit(Place(f"{path}.{name}[{number}]", hook, None, None, ""))
            elif name not in _OWN and not name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                self._entry(f"{path}.{name}", module.__dict__, name)
        for name in _scripted_names(module):
            self._visit(Place(f"{path}.{name}", getattr(module, name), module, name, "scripted"))
        for name, parameter in module._parameters.items():
            if parameter is not None:
                flag = parameter.requires_grad
                where = f"{path}.{name}.requires_grad"
                self._add(Place(where, flag, parameter, "requires_grad", "attribute", flag))
                for number, hook in enumerate(hooks_of(parameter)):
                    self._visit(Place(f"{path}.{name}.hooks[{number}]", hook, None, None, ""))
                self._visit(Place(f"{path}.{name}", parameter, None, None, ""))
                self.holders[f"{path}.{name}."] = Holder(vars(parameter), parameter)
                self._attributes_of(parameter, f"{path}.{name}")
        for name, buffer in module._buffers.items():
            where = f"{path}.{name}"
            if id(buffer) in self.known:
                self.buffers.add(where)
            elif where not in self.buffers:
                self._visit(Place(where, buffer, module._buffers, name, "item"))
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            self._add(self._marked(Place(f"{path}._extra_state", ExtraState(module), None, None, "")))
        self._class(type(module))

    def _object(self, place: Place) -> None:
        value = place.value
        if isinstance(attributes := getattr(value, "__dict__", None), dict):
            self.holders[f"{place.path}."] = Holder(attributes, value)
            for name in list(attributes):
                self._entry(f"{place.path}.{name}", attributes, name)
        for name in _slots(type(value)):
            try:
                part = object.__getattribute__(value, name)
            except AttributeError:
                continue
            self._visit(Place(f"{place.path}.{name}", part, value, name, "attribute"))
        if isinstance(value, list | dict | set | frozenset | tuple | deque):  # of a type of the user's
            self._container(place)
        elif isinstance(value, int | float | str):
            base = next(kind for kind in ATOMS[1:] if isinstance(value, kind))
            self._add(place._replace(marked=base.__repr__(cast("Any", value))))
        self._class(type(value))

    def _class(self, kind: type) -> None:
        if is_library(kind.__module__):
            return
        for base in kind.__mro__:
            if is_library(base.__module__) or id(base) in self._seen or isinstance(base, EnumType):
                continue
            self._seen.add(id(base))
            self._classes.append(base)
            for name, part in list(vars(base).items()):
                function = getattr(part, "__func__", getattr(part, "fget", part))
                if isinstance(function, types.FunctionType):
                    self._visit(Place(f"{base.__name__}.{name}", function, None, None, ""))
                elif not name.startswith("__") and name != "_abc_impl" and not isinstance(part, type):
                    self._visit(Place(f"{base.__name__}.{name}", part, base, name, "attribute"))

    def _partial(self, place: Place) -> None:
        partial = cast("functools.partial[Any]", place.value)
        self._visit(place._replace(value=partial.func, how=""))
        for number, part in enumerate(partial.args):
            self._visit(Place(f"{place.path}({number})", part, None, None, ""))
        for name, part in partial.keywords.items():
            self._visit(Place(f"{place.path}({name})", part, partial.keywords, name, "item"))

    def _function(self, place: Place) -> None:
        function, path = cast("types.FunctionType", place.value), place.path
        if is_library(function.__module__ or ""):
            return
        self.holders[f"{path}."] = Holder(function.__dict__, function)
        for name, part in list(function.__dict__.items()):
            self._visit(Place(f"{path}.{name}", part, function.__dict__, name, "item"))
        for name, cell in cells_of(function):
            self._visit(Place(f"{path}:{name}", cell.cell_contents, cell, name, "cell"))
        for number, part in enumerate(function.__defaults__ or ()):
            self._visit(Place(f"{path}(default {number})", part, None, None, ""))
        for name, part in (function.__kwdefaults__ or {}).items():
            self._visit(Place(f"{path}({name})", part, function.__kwdefaults__, name, "item"))
        self._globals(function)

    def _globals(self, function: types.FunctionType) -> None:
        names, scope = names_in(function.__code__), function.__globals__
        self._scope(scope, names)
        for name in names:
            if name not in scope:
                continue
            value = scope[name]
            if not isinstance(value, types.ModuleType):
                self._visit(self._global(scope, name))
            elif not is_library(value.__name__):
                inner = vars(value)
                self._scope(inner, names)
                for attribute in names:
                    if attribute in inner and not isinstance(inner[attribute], types.ModuleType):
                        self._visit(self._global(inner, attribute))

    def _scope(self, scope: dict[str, Any], names: tuple[str, ...]) -> None:
        """Note that some code uses these names of a module's globals."""
        holder = self.holders.setdefault(f"{_label(scope)}:", Holder(scope, None, set()))
        if holder.names is not None and holder.attributes is scope:
            holder.names.update(names)

    def _global(self, scope: dict[str, Any], name: str) -> Place:
        return Place(f"{_label(scope)}:{name}", scope[name], scope, name, "item")


def _scripted_names(module: nn.Module) -> list[str]:
    """Give the names of what a module of TorchScript holds in its compiled part besides weights, buffers and submodules."""
    if not isinstance(module, torch.jit.ScriptModule) or "_concrete_type" not in vars(module):
        return []
    kinds = cast("Any", module)._concrete_type
    return sorted(name for name in kinds.get_attributes() if name not in _OF_SCRIPTED and hasattr(module, name))


def _key(key: Any, number: int) -> str:
    """Give the text of a key; of a tensor or an object, whose own text may change and takes its code, the position."""
    parts: tuple[Any, ...] = key if type(key) is tuple else (key,)
    plain = all(type(part) in ATOMS or isinstance(part, bytes | Enum | np.generic) for part in parts)
    return f"{key!r:.40}" if plain else f"key {number}"


def _label(scope: dict[str, Any]) -> str:
    """Give a module's short name; of a task file the file's, as the module's says in which folder it lies."""
    name = str(scope.get("__name__", ""))
    return Path(str(scope.get("__file__"))).stem if name.startswith(TASK_FILES) else name.rsplit(".", 1)[-1]


def _slots(kind: type) -> list[str]:
    found = [base.__dict__.get("__slots__", ()) for base in kind.__mro__]
    names = [name for slots in found for name in ((slots,) if isinstance(slots, str) else slots)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]
