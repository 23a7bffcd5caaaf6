import pytest

import thalweg as tw
from thalweg.examples import digits
from thalweg.tuning import batch_size
from thalweg.tuning.batch_size import FEWEST_STEPS, Measured, candidates, choose


def measured(*speeds, first=32):
    return [Measured(first * 2**k, 1.0 if s else None, s or 0.0, 2**20) for k, s in enumerate(speeds)]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (20, [20]), (100, [32]), (700, [32, 64, 128]), (10**6, [32, 64, 128, 256, 512, 1024])],
)
def test_candidates_are_powers_of_two_that_leave_several_steps_an_epoch(count, sizes):
    assert candidates(count) == sizes


@pytest.mark.parametrize(
    ("count", "epochs", "sizes"),
    [
        (7, 3, [7]),
        (20, 5, [8]),
        (100, 5, [8, 16]),
        (200, 10, [8, 16, 32]),
        (200, 32, [32]),
        (1437, 1, [8, 16, 32, 64, 128, 256]),
        (1437, 20, [32, 64, 128, 256]),
        (60_000, 0.1, [8, 16, 32, 64, 128, 256, 512, 1024]),
        (None, 5, [32, 64, 128, 256, 512, 1024]),
    ],
)
def test_candidates_are_smaller_where_batches_of_32_leave_few_updates(count, epochs, sizes):
    assert candidates(count, epochs) == sizes


@pytest.mark.parametrize(
    ("count", "epochs", "size", "words"),
    [
        (200, 2, 8, "the smallest of those measured: none leaves 5,000 updates"),
        (200, 10, 8, "the smallest of those measured: none leaves 5,000 updates"),
        (200, 20, 16, "the largest of those measured that leaves 200 updates: none leaves 5,000"),
        (1437, 3, 16, "the largest of those measured that leaves 200 updates: none leaves 5,000"),
        (1437, 20, 32, "the smallest of those measured: none leaves 5,000 updates"),
    ],
)
def test_a_small_batch_is_chosen_only_for_its_updates(count, epochs, size, words):
    found = [Measured(b, 1.0, 100.0, 2**20) for b in candidates(count, epochs)]
    chosen, why = choose(found, epochs, count)
    assert chosen == size
    assert words in why.reason


def test_the_largest_that_leaves_enough_updates_is_chosen():
    found = measured(100, 200, 400, 800)
    count = 64 * FEWEST_STEPS
    assert choose(found, 1, count)[0] == 64
    assert choose(found, 2, count)[0] == 128
    assert choose(found, 0.1, count)[0] == 32  # none leaves enough


def test_without_epochs_the_smallest_that_is_half_as_fast_is_chosen():
    size, why = choose(measured(100, 390, 800, 700), None, None)
    assert size == 128
    assert "at least half as fast" in why.reason


def test_sizes_for_which_memory_ran_out_are_left():
    assert choose(measured(100, 200, None), 100, 10**9)[0] == 64


def test_where_memory_never_suffices_the_smallest_is_cut_into_parts():
    size, why = choose(measured(None), 1, 100)
    assert size == 32
    assert "memory ran out" in why.reason


def test_the_evidence_shows_what_was_measured():
    _, why = choose(measured(100, 200), 1, 10)
    assert why.source == "measured"
    assert why.figures == {"batch_sizes": [32, 64], "examples_per_second": [100, 200]}


@pytest.mark.parametrize(
    ("peaks", "shown"), [((464, 464, 465), None), ((400, 410, 419), None), ((400, 450, 800), [400, 450, 800])]
)
def test_memory_is_evidence_only_where_the_sizes_differ_in_it(peaks, shown):
    found = [Measured(32 * 2**k, 1.0, 100.0, peak * 2**20) for k, peak in enumerate(peaks)]
    assert choose(found, 1, 10)[1].figures.get("peak_megabytes") == shown


def test_this_process_uses_memory():
    import torch

    assert batch_size.peak_bytes(torch.device("cpu")) > 10**7


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("examples", "epochs", "share"), [(200, 2, 0.95), (60, 5, 0.95), (200, 10, 1.3)])
def test_of_few_examples_the_chosen_batches_are_no_worse_than_32(examples, epochs, share, seed):
    whole = digits.task(hidden=64)
    few = tw.Task(
        model=whole.model, loss=whole.loss, data=tuple(a[:examples] for a in whole.data), validation=whole.validation
    )
    chosen = tw.fit(few, epochs=epochs, seed=seed, effort="quick")
    larger = tw.fit(few, epochs=epochs, seed=seed, effort="quick", fixed={"batch_size": 32})
    assert chosen.plan.batch_size < 32
    assert chosen.metrics["loss"] < share * larger.metrics["loss"]
