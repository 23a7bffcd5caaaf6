import pytest

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
