"""What objects of the user's carry from call to call, watched: what has changed is copied, and can be put back."""

from __future__ import annotations

import marshal
import re
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from thalweg.objects.places import WEIGHTS, Finder, Place, Still, still_modules
from thalweg.objects.values import (
    ATOMS,
    Classes,
    arrays_in,
    decode,
    encode,
    has_state_dict,
    is_container,
    is_random,
    mark,
    mark_container,
    put_into,
    weigh,
)

LARGEST = (
    1 << 22
)  # elements of a tensor that is made anew at every call, such as outputs that a model keeps to be looked at
MOST_KEPT = 1 << 24  # bytes of tensors and arrays that are copied before they have changed
LOST = "(lost)"  # in a state, beside paths: of which places it does not have all
_MADE = "an object that is made as the run goes on"
_GONE = "a place whose object goes as the run goes on"
_EXCHANGED = "a place that is given another object as the run goes on"
_RENAMED = "a module whose weights come, go, are tied or get other names as the run goes on"
_CONTAINER = "a container in which objects come and go, or hang together in another way, as the run goes on"
_LINKS = {_MADE, _GONE, _EXCHANGED, _RENAMED, _CONTAINER}


class ObjectState:
    """The state of some objects, from a beginning on.

    `read` gives what has changed since then, by path, as entries that a checkpoint can hold; `write` puts such a state back, and
    what is not in it as it was at the beginning. A place that keeps its object (a list that grows) is changed in place, since
    others may hold it too; one that was given another object gets a new one.

    `problems` says of each path that cannot be kept why; `told` are those of them that somebody was told of.

    Arguments:
        roots: the objects, by name.
        known: identities of tensors that are left alone, such as the model's parameters.
    """

    def __init__(self, roots: Mapping[str, Any], known: set[int] | None = None) -> None:
        self.roots, self.known = {name: root for name, root in roots.items() if root is not None}, known or set()
        self.problems: dict[str, str] = {}
        self.told = set[str]()
        self._classes: Classes = {}  # that entries name
        self._marks: dict[str, Any] = {}
        self._objects: dict[str, Any] = {}  # as they were at the beginning, held, so that no other takes their identity
        self._entries: dict[str, Any] = {}  # their values then; not of all large tensors
        self._arrays: dict[
            str, dict[int, Any]
        ] = {}  # tensors and arrays that containers among them held then, by position
        self._last: dict[str, Any] = {}  # the marks when the state was read last
        self._last_bearers = set[str]()  # the places then whose object is no state by itself
        self._links: dict[str, Any] | None = None  # how the user's objects hung together once they had been called
        self._lost = set[
            str
        ]()  # paths that `read` says of that their state is not all there: a process that goes on knows it too
        self._holders: dict[str, Any] = {}  # what the places were in at the beginning
        self._changed = set[str]()
        self._lengths: dict[str, int] = {}  # of containers with objects, when they were seen first
        self._still = still_modules(self.roots, self.known)
        self._begin()

    def _begin(self) -> None:
        bytes_left = MOST_KEPT
        finder = self._finder(self.roots)
        for place in finder.places():
            if place.problem:
                self.problems[place.path] = place.problem
                continue
            self._marks[place.path], self._objects[place.path] = place.marked, place.value
            self._holders[place.path] = place.holder
            if place.alias:
                self._entries[place.path] = _alias(place.alias)
                continue
            weight = weigh(place.value)
            if weight.is_too_large and is_container(place.value):
                continue  # it matters only where it changes: `read` says so then
            if held := arrays_in(place.value):
                self._arrays[place.path] = held
            if weight.bytes <= bytes_left:
                bytes_left -= weight.bytes
                with suppress(Exception):  # of a `state_dict` of the user's
                    self._entries[place.path] = self._copied(place.value)
        # Held, so that the attributes of no object that is made later take the identity of these.
        self._first_holders = {id(holder.attributes): holder.attributes for holder in finder.holders.values()}
        self._first_names = {number: {*attributes} for number, attributes in self._first_holders.items()}
        of_modules = [h.owner._buffers for h in finder.holders.values() if isinstance(h.owner, nn.Module)]
        bearers = finder.bearers()
        self._first_bearers = {place.path for place in bearers}
        of_bearers = [place.holder for place in bearers]
        holders = (*self._holders.values(), *self._first_holders.values(), *of_modules, *of_bearers)
        self._were_there = {id(holder): holder for holder in holders}
        self._buffers = finder.buffers  # a module may give itself another tensor under the same name

    def _finder(
        self, roots: Mapping[str, Any], still: Mapping[int, Still] | None = None, buffers: set[str] | None = None
    ) -> Finder:
        return Finder(roots, self.known, still, buffers, self._classes)

    def with_gradient(self) -> dict[str, Tensor]:
        """Give the tensors, besides those that are left alone, that have been given a gradient, by path."""
        places = self._finder(self.roots).places()
        return {
            p.path: p.value
            for p in places
            if isinstance(p.value, Tensor) and not p.alias and p.value.is_leaf and p.value.grad is not None
        }

    def trained(self) -> set[int]:
        """Give the identities of tensors that the user's own code trains.

        An optimiser that it holds has them, or their values have changed since the beginning.
        """
        finder = self._finder(self.roots)
        moved = {
            id(place.value)
            for place in finder.places()
            if isinstance(place.value, Tensor)
            and self._objects.get(place.path) is place.value
            and place.marked is not None
            and _differs(self._marks[place.path][-1], place.marked[-1])
        }
        groups = [group for optimizer in finder.optimizers for group in optimizer.param_groups]
        return moved | {id(parameter) for group in groups for parameter in group["params"]}

    @property
    def irrevocable(self) -> list[str]:
        """The paths of what a call changes for good: not even `unchanged`, which has the objects, could put it back."""
        return [path for path, text in self.problems.items() if text not in _LINKS]

    def give_up(self, paths: Collection[str]) -> None:
        """Note that what these places held is lost, which somebody was told."""
        self.problems.update(dict.fromkeys(paths, "what could not be put back"))
        self._lost.update(paths)
        self.told.update(paths)

    def shared_with(self, other: ObjectState) -> list[str]:
        """Give the paths of what has changed, by what was read last, that objects of another state hold too."""
        places = self._finder(self.roots, buffers=self._buffers).places()
        held = {key for place in Finder(other.roots, other.known).places() for key in _identities(place)}
        return [p.path for p in places if p.path in self._changed and not held.isdisjoint(_identities(p))]

    def read(self) -> dict[str, Any]:
        """Give path -> {"value": entry, "same": whether the place still has its first object} of all that has changed.

        Of a container that is the first one "kept" are the positions of the tensors and arrays that it held then already.
        """
        return self._read(self._look())

    def note_links(self) -> None:
        """Note, once, how the objects hang together after a first call: what that makes, it makes in a resumed run too.

        What is made, or given to another place, after that is found by `read` and named: no state by paths holds it.
        """
        if self._links is None:
            finder = self._look()
            self._links = {} if finder.is_cut_short else finder.links

    def forget_links(self) -> None:
        """Name nothing more of what is made from here on."""
        self._links = {}

    def _look(self) -> Finder:
        """Go through the objects."""
        finder = self._finder(self.roots, self._still, self._buffers)
        finder.places()
        return finder

    def _read(self, finder: Finder) -> dict[str, Any]:
        state: dict[str, Any] = {}
        self._last = {}
        for place in finder.places():
            if place.problem:
                self.problems.setdefault(place.path, place.problem)
                continue
            path = place.path
            self._last[path] = place.marked
            if path in self._changed or path not in self._marks or _differs(self._marks[path], place.marked):
                self._changed.add(path)
                if place.alias:
                    state[path] = {"value": _alias(place.alias), "same": False}
                    continue
                same = path in self._objects and self._objects[path] is place.value
                is_large = isinstance(place.value, Tensor) and place.value.numel() > LARGEST
                if (
                    is_large and not same and not isinstance(place.holder, Tensor)
                ):  # a gradient is as large as its weight
                    self.problems[path] = f"a tensor of {place.value.numel():,} elements that is made anew"
                    continue
                try:
                    state[path] = {"value": encode(place.value, self._classes), "same": same}
                    if same and path in self._arrays:
                        first, now = self._arrays[path], arrays_in(place.value)
                        state[path]["kept"] = [i for i in first if now.get(i) is first[i]]
                except Exception as error:  # also of a `state_dict` of the user's
                    self.problems[path] = str(error)
        self._last_bearers = {place.path for place in finder.bearers()}
        for place in finder.of_objects:
            if self._lengths.setdefault(place.path, len(place.value)) != len(place.value):
                path = _outermost(place.path)
                self.problems.setdefault(path, "a container in which objects of your own come and go")
                self._lost.add(path)
        self._compare_links(finder)
        if self._lost:
            state[LOST] = {"value": encode(sorted(self._lost)), "same": False}
        return state

    def _compare_links(self, finder: Finder) -> None:
        """Name what has been made, exchanged or taken away since the objects' links were noted; of what lies below it nothing."""
        if not self._links or finder.is_cut_short or self._links == finder.links:
            return
        for path in dict.fromkeys((*finder.links, *self._links)):
            before, now = self._links.get(path), finder.links.get(path)
            # What was not there at the beginning goes again by itself.
            if before == now or (now is None and path not in self._first_bearers):
                continue
            what = _MADE if before is None else _GONE if now is None else _EXCHANGED
            if path.endswith(WEIGHTS):
                path, what = path.removesuffix(WEIGHTS), _RENAMED
            elif (container := _outermost(path)) != path:  # whose items would be named one by one
                path, what = container, _CONTAINER
            if not any(_lies_in(path, other) for other in self.problems):
                self.problems[path] = what
                self._lost.add(path)

    def write(
        self,
        state: Mapping[str, Any],
        only: tuple[str, ...] | None = None,
        attributes_of: str = "",
        since: Mapping[str, Any] | None = None,
        bearers: Collection[str] = (),
    ) -> list[str]:
        """Put a state back; give the paths that are no longer there, or take no such value.

        An object that was made since, at the first call say, and of which the state has nothing, goes again: the code that made
        it makes it anew. (Of a place that held another object from the beginning on, what it holds now stays.)

        Nothing but places of the objects is written to, whatever paths the state has. Raises TypeError where it is none at all.

        `only`: of these roots, with the objects that are first reached from them; `attributes_of`: of this root alone, without
        what its code uses elsewhere; `since`: the marks when `state` was read: what still has them is left alone; `bearers`: the
        places whose objects were there then.
        """
        if not isinstance(state, Mapping) or not all(isinstance(path, str) for path in state):
            raise TypeError("what the objects carry is no table by their paths")
        lost, state = _lost_in(state), {path: entry for path, entry in state.items() if path != LOST}
        finder = self._finder(self.roots if only is None else self._first(only), buffers=self._buffers)
        found = (place for place in finder.places() if not attributes_of or place.path.startswith(f"{attributes_of}."))
        places = {place.path: place for place in found}
        missing: list[str] = []
        aliases = {path: alias for path in places | state.keys() if (alias := self._alias_of(state, path))}
        for path, place in places.items():
            if path in aliases:
                continue
            if since is not None and path in since and not _differs(since[path], place.marked):
                continue
            if path in state:
                if not self._put_entry(place, state[path]):
                    missing.append(path)
            elif place.problem:
                continue
            elif path not in self._marks:
                self._remove(place)
            elif _differs(self._marks[path], place.marked):
                kept = [*self._arrays.get(path, ())]
                if path not in self._entries or not self._put(place, self._first_entry(path), True, kept):
                    missing.append(path)
        stay = self._first_bearers.union(bearers)
        for place in finder.bearers():
            if place.path.startswith(attributes_of) and place.path not in stay and not _has_of(state, place.path):
                missing += [] if self._put_away(place) else [place.path]
        new = [
            path for path in state.keys() - places.keys() if not attributes_of or path.startswith(f"{attributes_of}.")
        ]
        late = {path: place for path in new if (place := _late(finder, path)) is not None}
        for path in state.keys() - places.keys() - aliases.keys():
            made = path in late and self._make_attribute(late[path], state[path])
            missing += [path] if not made and only is None else []
        for path, first in aliases.items():
            joined = _join(places | late, path, first)
            missing += [path] if not joined and path in state and only is None else []
        self._changed |= state.keys()
        return sorted({*missing, *lost} if only is None else missing)

    def _put_away(self, place: Place) -> bool:
        """Put back the value that was in the place of an object made since; False where that is not kept."""
        if place.path not in self._marks:
            self._remove(place)
        elif self._holders[place.path] is place.holder:
            kept = [*self._arrays.get(place.path, ())]
            return place.path in self._entries and self._put(place, self._first_entry(place.path), True, kept)
        return True

    def _remove(self, place: Place) -> None:
        """Remove what an object has come to have since the beginning.

        Whatever an object that was made since has is its own: without it, it would be a broken one. So is what was there under
        another path.
        """
        had = self._first_names.get(id(place.holder), ())
        if id(place.holder) in self._were_there and place.key not in had:
            place.remove()

    def _alias_of(self, state: Mapping[str, Any], path: str) -> str | None:
        """Give the path whose object a place is to have; None where it has one of its own."""
        entry = state[path].get("value") if _is_entry(state.get(path)) else self._entries.get(path)
        is_alias = isinstance(entry, Mapping) and cast("Mapping[str, Any]", entry).get("kind") == "alias"
        return str(cast("Mapping[str, Any]", entry).get("path")) if is_alias else None

    def _copied(self, value: Any) -> Any:
        """Give the entry of a value; of a container of plain values its bytes, for this process alone: made far faster."""
        if is_container(value):
            with suppress(ValueError):  # not of plain values alone
                return marshal.dumps(value, 2)
        return encode(value, self._classes)

    def _make_attribute(self, place: Place, entry: Any) -> bool:
        """Make an attribute that an object does not have yet; False where there is no such entry."""
        try:
            return _is_entry(entry) and place.put(decode(entry["value"], None, self._classes))
        except Exception:  # no entry
            return False

    def _first_entry(self, path: str) -> Any:
        copied = self._entries[path]
        return encode(marshal.loads(copied), self._classes) if isinstance(copied, bytes) else copied

    def _first(self, only: tuple[str, ...]) -> dict[str, Any]:
        return {name: root for name, root in self.roots.items() if name in only}

    def _put_entry(self, place: Place, entry: Any) -> bool:
        """Put back what `read` gave of a place, unless it is something else: a checkpoint may have been written by anybody."""
        if not _is_entry(entry):
            return False
        kept = entry.get("kept")
        return self._put(place, entry["value"], entry["same"] is True, kept if isinstance(kept, list) else ())

    def _put(self, place: Place, value: Any, same: bool, kept: Collection[Any] = ()) -> bool:
        first, arrays = self._objects.get(place.path), self._arrays.get(place.path, {})
        try:
            if (is_random(place.value) or has_state_dict(place.value)) and isinstance(value, Mapping):
                return put_into(place.value, value, None, self._classes)
            if not place.how and place.path not in self._objects:  # a weight of a module made since, say
                return put_into(place.value, value, None, self._classes)
            is_copy = place.how == "scripted" and is_container(place.value)
            if same and type(first) not in ATOMS and not is_copy:
                if place.value is not first and place.how:
                    place.put(first)
                keep = {i: arrays[i] for i in kept if i in arrays}
                if put_into(first if place.how else place.value, value, keep, self._classes):
                    return True
            return place.put(decode(value, place.value, self._classes))
        except Exception:  # also of a `load_state_dict` of the user's
            return False

    @contextmanager
    def unchanged(self, *only: str) -> Generator[dict[str, Any]]:
        """Within, the objects may change; afterwards they are as before, those of the roots `only` where such are given.

        Gives their state, as `read` does.
        """
        finder = self._look()
        before, marks, bearers = self._read(finder), self._last, self._last_bearers
        held = finder.hold(only)
        try:
            yield before
        finally:
            held.give_again()
            if not all(
                map(self._is_as_found, finder.places())
            ):  # which costs a tenth of going through all objects again
                self.write(before, only or None, since=marks, bearers=bearers)

    def _is_as_found(self, place: Place) -> bool:
        """Tell whether a place is sure to have the value with which it was found."""
        if place.problem or place.alias:
            return True
        try:
            value = place.present() if place.how else place.value
            if type(value) in ATOMS:
                return not _differs(place.marked, value)
            if value is not place.value:
                return False
            if isinstance(value, Tensor | np.ndarray):
                return not _differs(place.marked, mark(value))
            if is_container(value):
                return not _differs(place.marked, mark_container(value, known=self.known, weight=weigh(value)))
        except Exception:  # it is gone, or holds other kinds of objects now
            pass
        return False


def _outermost(path: str) -> str:
    """Give the path of the outermost container that a path leads through; of one that leads through none itself."""
    return re.match(r"(metrics\[.*?\])?[^\[]*", path, re.DOTALL).group()  # pyright: ignore[reportOptionalMemberAccess]


def _lost_in(state: Mapping[str, Any]) -> list[str]:
    """Give the paths of which a state says that it does not have all."""
    entry: Any = state.get(LOST)
    value = entry["value"] if _is_entry(entry) else None
    items = cast("Mapping[str, Any]", value).get("items") if isinstance(value, Mapping) else None
    return [path for path in cast("list[Any]", items) if isinstance(path, str)] if isinstance(items, list) else []


def _alias(path: str) -> dict[str, Any]:
    return {"kind": "alias", "path": path}


def _join(places: Mapping[str, Place], path: str, first: str) -> bool:
    """Give a place the object that another one has; False where one of them is not there."""
    if path not in places or first not in places:
        return False
    try:
        value = places[first].present()
        plain = is_container(value) or isinstance(value, Tensor | np.ndarray)
        return places[path].value is value or (plain and places[path].put(value))
    except Exception:  # an attribute that was not made
        return False


def _late(finder: Finder, path: str) -> Place | None:
    """Give the place of an attribute that an object does not have yet, as it is made at the first call, unless it may not be."""
    prefix, name = re.fullmatch(r"(.*?)([^.:]*)", path, re.DOTALL).groups()  # pyright: ignore
    holder = finder.holders.get(prefix)
    return Place(path, None, holder.attributes, name, "item") if holder is not None and holder.takes(name) else None


def _identities(place: Place) -> set[tuple[int, Any]]:
    """Give what tells that another place is the same one, or has the same object that can change."""
    where = set[tuple[int, Any]]() if place.holder is None else {(id(place.holder), place.key)}
    return where if type(place.value) in ATOMS else where | {(id(place.value), None)}


def _has_of(state: Mapping[str, Any], path: str) -> bool:
    """Tell whether a state has something of what a place holds."""
    return any(_lies_in(other, path) for other in state)


def _lies_in(path: str, other: str) -> bool:
    """Tell whether a path is another one, or leads on from it."""
    return path.startswith(other) and path[len(other) :][:1] in ("", ".", ":", "[", "(")


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, Mapping) and {"value", "same"} <= entry.keys()


def _differs(one: Any, other: Any) -> bool:
    """Tell whether two marks are of different values; True and 1 are."""
    if type(one) is not type(other):
        return True
    if isinstance(one, tuple):
        return len(one) != len(other) or any(map(_differs, one, other))
    return bool(one != other)
