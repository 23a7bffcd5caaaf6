"""Hidden units found from the module, and a permuted copy matched back."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.landscape.hidden_units import hidden_units, permuted
from thalweg.landscape.weight_matching import matched_orders


class Residual(nn.Module):
    """Convolutions whose outputs are added: their channels are one group."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.a, self.norm_a = nn.Conv2d(width, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.norm_b = nn.Conv2d(6, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.c, self.across = nn.Conv2d(width, 12, 3, stride=2, padding=1), nn.Conv2d(width, 12, 1, stride=2)
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))
        return self.out(F.relu(self.across(x) + self.c(x)).mean((2, 3)))


class Gated(nn.Module):
    """Two halves of one layer make a unit, and weights that belong to no module of PyTorch's."""

    def __init__(self):
        super().__init__()
        self.both, self.scale, self.last = (
            nn.Linear(6, 20),
            nn.Parameter(torch.rand(10)),
            nn.Parameter(torch.randn(10, 4)),
        )

    def forward(self, x):
        value, gate = self.both(x).chunk(2, -1)
        return (value * torch.sigmoid(gate) * self.scale) @ self.last


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.cell, self.out = nn.Linear(6, 7), nn.LSTM(7, 9, batch_first=True), nn.Linear(9, 4)

    def forward(self, x):
        _, (hidden, _) = self.cell(torch.tanh(self.into(x[:, None].expand(-1, 3, -1))))
        return self.out(hidden[-1])


class Cells(nn.Module):
    """A recurrent cell, called again and again."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(6, 7), nn.Linear(7, 4)

    def forward(self, x):
        state = None
        for _ in range(3):
            state = self.cell(x, state)
        return self.out(state)


class Packed(nn.Module):
    """A recurrent layer on sequences of several lengths."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 3, 1]), batch_first=True)
        return self.out(self.layer(packed)[1][0][-1])


class Language(nn.Module):
    """A block with attention of its own, and one matrix for embedding and output."""

    def __init__(self, width=12, heads=3):
        super().__init__()
        self.heads, self.embedding = heads, nn.Embedding(9, width)
        self.norm, self.all, self.back = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.into, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = self.embedding(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.all(self.norm(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.back(attended)
        return F.linear(x + self.out(F.gelu(self.into(x))), self.embedding.weight)


class Joined(nn.Module):
    """Channels side by side with the data's own, one convolution for each channel, and a flattened picture."""

    def __init__(self):
        super().__init__()
        self.a, self.each = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.out = nn.Linear(6 * 16, 3)

    def forward(self, x):
        x = torch.cat([x, F.relu(self.a(x))], 1)
        return self.out(F.adaptive_max_pool2d(F.gelu(self.each(x)), 4).flatten(1))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.places = nn.Embedding(11, 16), nn.Parameter(0.1 * torch.randn(5, 16))
        block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.3, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 11)

    def forward(self, x):
        return self.out(self.norm(self.blocks(self.embedding(x) + self.places)))


NETWORKS = {
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)),
        lambda: torch.randn(4, 6),
        [16, 16],
    ),
    "convolutions": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.GELU()),
            *(nn.Flatten(), nn.Dropout(), nn.Linear(32, 10), nn.LayerNorm(10), nn.SiLU(), nn.Linear(10, 3)),
        ),
        lambda: torch.randn(4, 1, 10, 10),
        [6, 8, 10],
    ),
    "there and back": (
        lambda: nn.Sequential(
            *(nn.Conv1d(2, 6, 3, stride=2, padding=1), nn.GroupNorm(1, 6), nn.PReLU(6)),
            *(nn.ConvTranspose1d(6, 5, 2, stride=2), nn.ELU(), nn.Conv1d(5, 1, 1)),
        ),
        lambda: torch.randn(3, 2, 8),
        [5, 6],
    ),
    "residual": (Residual, lambda: torch.randn(4, 1, 8, 8), [6, 8, 12]),
    "gated": (Gated, lambda: torch.randn(4, 6), [10]),
    "recurrent": (Recurrent, lambda: torch.randn(4, 6), [7, 9]),
    "cells": (Cells, lambda: torch.randn(4, 6), [7]),
    "packed": (Packed, lambda: torch.randn(3, 4, 3), [5]),
    "language": (Language, lambda: torch.randint(0, 9, (3, 6)), [3, 12, 48]),
    "joined": (Joined, lambda: torch.randn(3, 1, 8, 8), [5]),
    "transformer": (Transformer, lambda: torch.randint(0, 11, (3, 5)), [2, 2, 16, 24, 24]),
}


def made(kind, seed=0):
    torch.manual_seed(seed)
    model, data, sizes = NETWORKS[kind]
    net, x = model().eval(), data()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net, x, sizes


def tensors_of(net):
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("kind", NETWORKS)
def test_groups_are_found_and_any_permutation_of_them_leaves_the_outputs(kind):
    net, x, sizes = made(kind)
    before = tensors_of(net)
    groups = hidden_units(net, lambda: net(x)).groups
    assert sorted(group.units for group in groups) == sizes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    random, expected = np.random.default_rng(0), net(x)
    moved = permuted(before, groups, [random.permutation(group.units) for group in groups])
    net.load_state_dict(moved)
    assert sum(not torch.equal(moved[name], before[name]) for name in before) > 2
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_permuted_copy_is_matched_back(kind):
    net, x, _ = made(kind, seed=1)
    groups = hidden_units(net, lambda: net(x)).groups
    tensors, names = tensors_of(net), [name for name, _ in net.named_parameters()]
    own = {name: tensors[name] for name in names}
    for seed in range(5):
        random = np.random.default_rng(seed)
        moved = permuted(tensors, groups, [random.permutation(group.units) for group in groups])
        orders = matched_orders(own, {name: moved[name] for name in names}, groups)
        back = permuted(moved, groups, orders)
        assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_matching_never_leads_further_apart_and_finds_the_best_order_of_few_units():
    one, other = (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
    groups = hidden_units(one, lambda: one(torch.ones(2, 3))).groups
    first, second = tensors_of(one), tensors_of(other)

    def distance(order):
        moved = permuted(second, groups, [np.array(order)])
        return sum(float((first[name] - moved[name]).square().sum()) for name in first)

    (found,) = matched_orders(first, second, groups)
    assert distance(found) == pytest.approx(min(map(distance, permutations(range(4)))))


def test_recurrent_layers_of_two_directions_and_grouped_channels_are_left_and_named():
    both = nn.LSTM(3, 4, bidirectional=True)
    found = hidden_units(both, lambda: both(torch.ones(2, 1, 3))[0])
    assert not found.groups
    assert "weight_hh_l0" in found.left
    grouped = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Conv1d(4, 4, 1, groups=2), nn.Conv1d(4, 1, 1))
    found = hidden_units(grouped, lambda: grouped(torch.ones(2, 2, 5)))
    assert not found.groups
    assert set(found.left) == {"0.weight", "1.weight"}


def test_heads_of_an_attention_of_one_s_own_are_units():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(12, 12) for _ in range(4))

        def forward(self, x):
            q, k, v = (f(x).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.query, self.key, self.value))
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    net, x = Attention(), torch.randn(3, 5, 12)
    found = hidden_units(net, lambda: net(x))
    assert [group.units for group in found.groups] == [3]
    assert found.groups[0].places["query.weight", 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert {name for name, _ in found.groups[0].places} == set(tensors_of(net)) - {"out.bias"}
    assert found.left == ()


def test_units_with_frozen_weights_and_those_that_are_told_apart_keep_their_order():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    net[0].weight.requires_grad_(False)
    x = torch.randn(4, 3)
    assert [group.name for group in hidden_units(net, lambda: net(x)).groups] == ["2.weight"]

    class Weighed(nn.Module):
        """Each unit is multiplied with its number."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)) * torch.arange(1.0, 6.0))

    weighed = Weighed()
    found = hidden_units(weighed, lambda: weighed(x))
    assert (found.groups, found.left) == ((), ("a.weight",))


def test_units_that_a_normalisation_of_one_s_own_mixes_and_weights_that_are_computed_are_left_and_named():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.scale, self.b = nn.Linear(4, 8), nn.Parameter(torch.ones(8)), nn.Linear(8, 2)

        def forward(self, x):
            x = self.a(x)
            return self.b(torch.relu(x / x.std(-1, keepdim=True) * self.scale))

    net, x = Normed(), torch.randn(4, 4)
    assert hidden_units(net, lambda: net(x)).groups == ()
    computed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 2))
    found = hidden_units(computed, lambda: computed(x))
    assert found.groups == ()
    assert any("original1" in name for name in found.left)


def test_no_random_number_of_the_process_is_drawn_and_nothing_of_the_model_moves():
    net, x, _ = made("residual")
    before, state = tensors_of(net), torch.get_rng_state()
    hidden_units(net, lambda: net(x))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_model_that_cannot_be_followed_has_no_groups():
    class Wilful(nn.Module):
        """Looks at its numbers."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.a(x)
            if x.mean() < 0.45:
                x = x + self.a(torch.ones(3))
            return self.b(x)

    net, x = Wilful(), torch.randn(4, 3)
    before = tensors_of(net)
    assert hidden_units(net, lambda: net(x)).groups == ()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
