"""A replay takes the same steps again from the snapshot, and leaves the descent where a snapshot can be restored."""

import torch
from small import classes, network, plan, started, walk, weights
from torch import nn

from thalweg.descent.cure import accept_step
from thalweg.descent.gradient import compute_gradient
from thalweg.descent.replay import SnapshotReplay
from thalweg.records.diagnosis import Cure
from thalweg.watch.probe import Probe
from thalweg.watch.replay import Batch


def at_snapshot():
    """A descent with dropout and momentum whose snapshot is of step 10, with its next batches' figures and draws."""
    descent, recorder = started(
        classes(model=lambda: network(nn.Dropout(0.3), nn.BatchNorm1d(12))), plan(rule="momentum", snapshot_every=10)
    )
    walk(descent, recorder, until=11)
    return descent, recorder


def next_batches(descent, recorder, count):
    """Restore the snapshot and take steps by hand: each batch with its loss and gradient norm."""
    descent.load_state_dict(descent.snapshot, rollback=True)
    taken = []
    for _ in range(count):
        descent.set_rate(descent.rate())
        loss, _ = compute_gradient(descent, recorder)
        taken.append((Batch(descent.last_draw, *descent.last_position), loss))
        descent.optimizer.step()
        taken[-1] += (descent.optimizer.last.gradient_norm, weights(descent.model))
        descent.step += 1
    return taken


def test_a_replay_without_a_change_sees_what_the_steps_saw():
    descent, recorder = at_snapshot()
    taken = next_batches(descent, recorder, 4)
    again = SnapshotReplay(descent)([batch for batch, *_ in taken])
    assert [figures.loss for figures in again] == [loss for _, loss, *_ in taken]
    assert torch.allclose(torch.tensor([f.gradient_norm for f in again]), torch.tensor([n for _, _, n, _ in taken]))
    assert [figures.step for figures in again] == [11, 12, 13, 14]
    assert torch.equal(weights(descent.model), taken[2][3])  # of the last batch only the gradient is computed


def test_a_change_is_that_replays_alone():
    descent, recorder = at_snapshot()
    batches = [batch for batch, *_ in next_batches(descent, recorder, 3)]
    replay = SnapshotReplay(descent)
    same = [f.loss for f in replay(batches)]
    halved = replay(batches, Cure("Halve the rate.", rate_factor=0.5, clip_norm=1e-6))
    assert halved[0].loss == same[0]
    assert halved[1].loss != same[1]
    assert [f.learning_rate for f in halved] == [0.5 * f.learning_rate for f in replay(batches)]
    assert descent.optimizer.clip_norm == descent.plan.clip_norm
    assert [f.loss for f in replay(batches)] == same


def test_after_a_replay_and_a_restored_snapshot_training_is_as_if_there_had_been_none():
    one, recorder = at_snapshot()
    other, other_recorder = at_snapshot()
    batches = [batch for batch, *_ in next_batches(one, recorder, 2)]
    SnapshotReplay(one)(batches)
    for descent in (one, other):
        descent.load_state_dict(descent.snapshot, rollback=True)
    walk(one, recorder, until=25)
    walk(other, other_recorder, until=25)
    assert torch.equal(weights(one.model), weights(other.model))


def test_a_step_that_nothing_is_found_in_stands():
    from thalweg.records.step_figures import StepFigures

    descent, recorder = at_snapshot()
    assert accept_step(descent, recorder, StepFigures(12, 1.0, 0.01, 1.0), Probe())
    assert recorder.diagnoses == []
