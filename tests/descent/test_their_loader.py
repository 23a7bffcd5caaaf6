"""Nobody but training touches the training's pass over a loader: whatever else wants batches takes those kept before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small import blobs, classes, network
from small import plan as any_plan
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, Sampler, TensorDataset

import thalweg as tw

ROWS = 60
X, Y = blobs(ROWS)
PER_BATCH = 4
EPOCH = ROWS // PER_BATCH


def plan(**knobs: Any) -> tw.Plan:
    return any_plan(batch_size=PER_BATCH, **knobs)


class Lazy(Sampler[int]):
    """Draws each index when it is asked for, and from a place that all its passes share."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def __len__(self) -> int:
        return ROWS

    def __iter__(self) -> Iterator[int]:
        self.left = list(range(ROWS))
        while self.left:
            yield self.left.pop(int(torch.randint(len(self.left), ())))


class Stateful:
    """A loader whose place is the object's: a pass begins where the last one was left."""

    def __init__(self) -> None:
        self.at = 0

    def __len__(self) -> int:
        return EPOCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.at < EPOCH:
            first, self.at = PER_BATCH * self.at, self.at + 1
            yield X[first : first + PER_BATCH], Y[first : first + PER_BATCH]
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


class Restarting(Stateful):
    """A loader with a state whose passes begin anew, unless a state was loaded just before, as torchdata's."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded = False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.at, self.loaded = self.at if self.loaded else 0, False
        return super().__iter__()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.loaded = True


def loader(sampler: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=PER_BATCH, sampler=sampler or Lazy(), **options)


KINDS: dict[str, Any] = {
    "workers that are kept": lambda: loader(num_workers=1, persistent_workers=True),
    "a sampler that draws lazily": loader,
    "a sampler that draws from a generator": lambda: loader(
        RandomSampler(range(ROWS), generator=torch.Generator().manual_seed(1))
    ),
    "a state that stays": Stateful,
    "a state that begins anew": Restarting,
}


class Noting(nn.Module):
    """Notes the rows that it is trained on."""

    seen: list[Tensor] = []  # of all copies

    def __init__(self) -> None:
        super().__init__()
        self.inner = network(nn.BatchNorm1d(12))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.seen.append(x.clone())
        return self.inner(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("knobs", [{}, {"ema": 0.9}], ids=["plain", "ema"])
def test_an_epoch_sees_every_row_once_however_often_it_is_validated(kind: str, knobs: dict[str, Any]) -> None:
    made = plan(steps=2 * EPOCH, validate_every=4, snapshot_every=5, **knobs)
    run = tw.train(classes(model=Noting, data=KINDS[kind](), validation=None, metrics={}), made)
    assert run.summary["status"] == "finished"
    for epoch in (Noting.seen[-2 * EPOCH : -EPOCH], Noting.seen[-EPOCH:]):
        assert len({tuple(row.tolist()) for row in torch.cat(epoch)}) == ROWS


@pytest.mark.parametrize("kind", KINDS)
def test_validating_more_often_changes_no_bit_of_a_run(kind: str) -> None:
    task = {"model": Noting, "validation": None, "metrics": {}}
    often, seldom = (
        tw.train(classes(data=KINDS[kind](), **task), plan(steps=EPOCH + 4, validate_every=every, keep="last"))
        for every in (3, 100)
    )
    assert all(torch.equal(a, b) for a, b in zip(often.model.parameters(), seldom.model.parameters(), strict=True))


def test_what_is_kept_of_a_stream_is_measured_unchanged_though_the_model_changes_its_input() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.mul_(2.0))

    run = tw.train(
        classes(model=InPlace, data=loader(), validation=None, metrics={}),
        plan(steps=6, validate_every=2, learning_rate=1e-30, weight_decay=0.0),
    )
    measured = run.history["validation/loss"]
    assert len(set(measured[~torch.isnan(torch.as_tensor(measured)).numpy()].tolist())) == 1


@pytest.mark.parametrize("kind", ["workers that are kept", "a state that stays"])
def test_one_loader_as_training_and_validation_data_is_refused_in_a_sentence(kind: str) -> None:
    both = KINDS[kind]()
    with pytest.raises(tw.DataError, match=r"is a loader that training is reading.*a loader of its own\.") as refused:
        tw.train(classes(data=both, validation=both, metrics={}), plan(steps=6, validate_every=2))
    assert refused.value.run is not None


def test_two_runs_at_once_over_one_loader_with_a_place_are_refused_and_the_first_goes_on() -> None:
    shared, refused = Stateful(), list[BaseException]()

    def other() -> None:
        try:
            tw.train(classes(data=shared, validation=None, metrics={}), plan(steps=3))
        except tw.DataError as error:
            refused.append(error)

    def on_step(model: nn.Module, figures: Any) -> None:
        if figures.step == 2:
            second = threading.Thread(target=other)
            second.start()
            second.join()

    task = classes(model=Noting, data=shared, validation=None, metrics={})
    run = tw.train(task, plan(steps=EPOCH), on_step=on_step)
    assert run.summary["status"] == "finished"
    assert len(refused) == 1
    assert len({tuple(row.tolist()) for row in torch.cat(Noting.seen[-EPOCH:])}) == ROWS
    other()  # and afterwards it may be used again
    assert len(refused) == 1
