import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.sampling import mix, order

counts = st.integers(1, 200)
seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 10**6)


@given(counts, seeds, epochs)
def test_an_epoch_is_a_permutation(count, seed, epoch):
    assert sorted(order(count, seed, epoch).tolist()) == list(range(count))


@given(counts, seeds, epochs, st.booleans())
def test_the_order_is_a_function_of_seed_and_epoch_alone(count, seed, epoch, replacement):
    first = order(count, seed, epoch, replacement=replacement)
    torch.manual_seed(count)
    torch.rand(3)
    assert torch.equal(first, order(count, seed, epoch, replacement=replacement))


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    (
        order(50, 0, 0),
        order(50, 0, 0, replacement=True),
        order(50, 0, 0, weights=torch.rand(50, generator=torch.Generator())),
    )
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_and_epochs_give_unlike_orders():
    seen = {tuple(order(30, seed, epoch).tolist()) for seed in range(20) for epoch in range(20)}
    assert len(seen) == 400


def test_each_place_is_reached_by_each_example_equally_often():
    # 2,000 epochs of 6: each of 36 pairs (example, place) is expected 333 times; chi-squared with 25 degrees of freedom.
    seen = torch.zeros(6, 6)
    for epoch in range(2000):
        seen[torch.arange(6), order(6, 3, epoch)] += 1
    expected = 2000 / 6
    assert float(((seen - expected) ** 2 / expected).sum()) < 60  # P < 1e-4 for a fair order


@given(counts, seeds, st.integers(1, 9), st.booleans())
def test_the_shares_of_the_ranks_are_complete_and_overlap_only_by_the_filling(count, seed, world, shuffle):
    shares = [order(count, seed, 1, shuffle=shuffle, rank=rank, world=world).tolist() for rank in range(world)]
    assert {len(share) for share in shares} == {math.ceil(count / world)}
    drawn = [index for share in shares for index in share]
    assert set(drawn) == set(range(count))
    if count >= world:
        assert len(drawn) - count < world
        assert max(map(drawn.count, drawn)) <= 2
    if count % world == 0:
        assert len(drawn) == len(set(drawn))


def test_a_sequence_in_its_own_order():
    assert order(4, 9, 9, shuffle=False).tolist() == [0, 1, 2, 3]


@given(st.integers(1, 50), seeds)
def test_drawing_with_replacement_stays_within_the_data(count, seed):
    drawn = order(count, seed, 0, replacement=True)
    assert len(drawn) == count
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < count


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(any), seeds)
def test_what_weighs_nothing_is_never_drawn(weights, seed):
    drawn = order(len(weights), seed, 0, weights=torch.tensor(weights, dtype=torch.float64))
    assert all(weights[index] > 0 for index in drawn.tolist())


def test_weights_are_shares():
    drawn = order(40_000, 1, 0, weights=torch.tensor([1.0, 3.0] * 20_000))
    share = float((drawn % 2).double().mean())
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 40_000)


@given(st.lists(st.integers(0, 2**64), min_size=1, max_size=4))
def test_mixed_seeds_fit_generators(words):
    seed = mix(*words)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)


def test_neighbouring_words_give_unrelated_seeds():
    seeds = [mix(a, b) for a in range(100) for b in range(100)]
    assert len(set(seeds)) == len(seeds)
    ones = [sum(bin(mix(0, n) ^ mix(0, n + 1)).count("1") for n in range(500)) / 500]
    assert ones == pytest.approx([31.5], abs=1.0)
