"""Sharing a search: several processes, on one machine or many, replay the same search and divide its candidates among them.

Each asks for the same scores in the same order. Before it trains a candidate it claims it, in the study, and says now and then
that it is still at it; the others train something else, or wait. A claim that is no longer kept up is void. Two that claim the
same one at the same moment may both train it: that costs time, no more, as the outcome that is recorded first counts for all.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from thalweg.records.plan import Plan
from thalweg.tuning.outcome import plan_sum
from thalweg.tuning.study import Study

BEAT_SECONDS = 10.0  # between two times that a claim is kept up
VOID_SECONDS = 60.0  # after which a claim is void that is not
WAIT_SECONDS = 1.0  # before it is looked again whether others are done


class Sharing:
    """The claims of this process and of others on the candidates of a study. Raises StudyError as the study does."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self.name = f"{_host()}/{os.getpid()}/{os.urandom(3).hex()}"
        self._mine, self._step = list[Plan](), 0
        self._beats, self._next_beat = 0, 0.0
        self._seen = dict[str, tuple[Mapping[str, Any], float]]()

    def order(self, plan: Plan) -> str:
        """Give what to sort candidates by, so that each process claims them in an order of its own."""
        return hashlib.sha256(f"{self.name} {plan_sum(plan)}".encode()).hexdigest()

    def claim(self, plans: Sequence[Plan], step: int, most: int) -> list[Plan]:
        """Claim candidates that are free, so many at most, to take them to a step; gives those that are this process's now."""
        claims = self._study.read_claims()
        free = [plan for plan in plans if self._is_free(plan_sum(plan), claims, step)][:most]
        self._mine, self._step = free, step
        self._write()
        claims = self._study.read_claims()
        self._mine = [plan for plan in free if claims.get(plan_sum(plan), {}).get("by") == self.name]
        return self._mine

    def keep_up(self) -> None:
        """Say that this process is still at its candidates, where it has not been said for some seconds."""
        if self._mine and time.monotonic() >= self._next_beat:
            self._write()

    def _write(self) -> None:
        self._beats += 1
        for plan in self._mine:
            self._study.write_claim(plan, {"by": self.name, "step": self._step, "beat": self._beats})
        self._next_beat = time.monotonic() + BEAT_SECONDS

    def _is_free(self, run: str, claims: Mapping[str, Mapping[str, Any]], step: int) -> bool:
        """Whether nobody else is taking a candidate to a step; clocks of other machines are not gone by."""
        claim = claims.get(run)
        if claim is None or claim.get("by") == self.name or claim.get("step") != step:
            return True
        now, (before, since) = time.monotonic(), self._seen.get(run, ({}, 0.0))
        if claim != before:
            self._seen[run] = claim, now
            return _is_gone(str(claim.get("by")))
        return now - since > VOID_SECONDS or _is_gone(str(claim.get("by")))


def _is_gone(name: str) -> bool:
    """Whether a process of this very machine has ended."""
    host, _, rest = name.partition("/")
    number = rest.partition("/")[0]
    if host != _host() or not re.fullmatch(r"[0-9]{1,18}", number):
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
