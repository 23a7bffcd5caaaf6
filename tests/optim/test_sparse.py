"""Sparse gradients: taken by the rules whose classes in PyTorch take them, to the same weights; others refuse them."""

import copy
import math

import pytest
import torch
from torch import nn

from thalweg import optim
from thalweg.errors import NonFiniteError, RuleError
from thalweg.rules import RULES

both_engines = pytest.mark.parametrize("engine", ["cpu", "tensors"])
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # torch's own Adagrad

CASES = [
    ("SGD", {}),
    ("SGD", {"maximize": True}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.2, "maximize": True}),
]
every_case = pytest.mark.parametrize(("kind", "options"), CASES, ids=str)


class Words(nn.Module):
    """An embedding, or a bag of embeddings, before a layer with a dense gradient."""

    def __init__(self, table, rows=12, dtype=torch.float64):
        super().__init__()
        self.table = table(rows, 3, sparse=True, dtype=dtype)
        self.head = nn.Linear(3, 2, dtype=dtype)

    def forward(self, ids):
        found = self.table(ids)
        return self.head(found if found.ndim == 2 else found.mean(1))


def model(table=nn.Embedding, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Words(table, **options)


def ids(seed, rows=12):
    """Rows that stand several times in a batch, which makes the gradient an uncoalesced one."""
    return torch.randint(0, rows, (4, 6), generator=torch.Generator().manual_seed(seed))


def descend(words, optimizer, steps=5, first=0, before_step=lambda: None):
    for i in range(first, first + steps):
        optimizer.zero_grad()
        words(ids(i)).square().mean().backward()
        before_step()
        optimizer.step()


@pytest.mark.parametrize("table", [nn.Embedding, nn.EmbeddingBag], ids=lambda t: t.__name__)
@both_engines
@every_case
def test_it_goes_where_torchs_class_goes(kind, options, engine, table):
    ends = []
    for home, more in ((optim, {"engine": engine}), (torch.optim, {})):
        words = model(table)
        optimizer = getattr(home, kind)(words.parameters(), lr=0.1, **options, **more)
        descend(words, optimizer)
        assert words.table.weight.grad.is_sparse
        ends.append([*words.parameters()])
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "more", [{}, {"clip_norm": 0.01}, {"clip_value": 0.002, "clip_norm": 0.01}, {"ema": 0.9}], ids=str
)
@both_engines
@every_case
def test_a_sparse_gradient_is_to_the_last_bit_the_dense_one(kind, options, engine, more):
    ends, records = [], []
    for is_dense in (False, True):
        words = model()
        optimizer = getattr(optim, kind)(words.parameters(), lr=0.1, engine=engine, **options, **more)

        def make_dense(words=words, is_dense=is_dense):
            if is_dense:
                words.table.weight.grad = words.table.weight.grad.to_dense()

        descend(words, optimizer, before_step=make_dense)
        ends.append([*words.parameters(), *optimizer.state.get(words.table.weight, {}).values()])
        records.append(optimizer.last)
    assert all(map(torch.equal, *ends))
    assert records[0].gradient_norms == records[1].gradient_norms


@both_engines
def test_gradients_may_be_sparse_and_dense_by_turns(engine):
    """The dense ones take the fast path, which must see that the next one is sparse."""
    ends = []
    for turns in (False, True):
        words = model()
        optimizer, seen = optim.SGD(words.parameters(), lr=0.1, momentum=0.9, engine=engine), []

        def turn(words=words, turns=turns, seen=seen):
            seen.append(None)
            if not turns or len(seen) % 3:
                words.table.weight.grad = words.table.weight.grad.to_dense()

        descend(words, optimizer, steps=9, before_step=turn)
        ends.append([*words.parameters()])
    assert all(map(torch.equal, *ends))


@both_engines
def test_a_state_of_torchs_with_a_sparse_momentum_is_loaded(engine):
    theirs = model()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    descend(theirs, optimizer, 2)
    assert optimizer.state[theirs.table.weight]["momentum_buffer"].is_sparse
    ours = copy.deepcopy(theirs)
    continued = optim.SGD(ours.parameters(), lr=0.1, momentum=0.9, engine=engine)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(theirs, optimizer, 3, first=2)
    descend(ours, continued, 3, first=2)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.takes_sparse])
@both_engines
def test_other_rules_refuse_it_by_name_with_nothing_moved_and_go_on_with_dense_ones(name, engine):
    words = model()
    optimizer = optim.Optimizer(words.named_parameters(), name, lr=0.01, engine=engine)
    before = [p.detach().clone() for p in words.parameters()]
    with pytest.raises(
        RuleError, match=rf"table\.weight is sparse, which {name} does not take, but SGD and Adagrad do"
    ):
        descend(words, optimizer, 1)
    assert all(map(torch.equal, words.parameters(), before))
    assert not optimizer.state
    words.table.sparse = False
    descend(words, optimizer, 1)
    assert not torch.equal(words.table.weight, before[0])


def test_a_group_of_its_own_takes_them_as_the_refusal_advises():
    words = model()
    groups = [
        {"params": words.table.parameters(), "rule": "adagrad", "weight_decay": 0},
        {"params": words.head.parameters()},
    ]
    optimizer = optim.AdamW(groups, lr=0.1)
    before = [p.detach().clone() for p in words.parameters()]
    descend(words, optimizer, 2)
    assert not any(map(torch.equal, words.parameters(), before))


@pytest.mark.parametrize("kind", ["SGD", "Adagrad", "Momentum"])
def test_weight_decay_beside_a_sparse_gradient_is_refused_as_in_torch(kind):
    words = model()
    optimizer = getattr(optim, kind)(words.named_parameters(), lr=0.1, weight_decay=0.1)
    with pytest.raises(RuleError, match=r"table\.weight is sparse, and weight decay would move .* weight_decay=0"):
        descend(words, optimizer, 1)
    groups = [{"params": words.table.parameters(), "weight_decay": 0.0}, {"params": words.head.parameters()}]
    descend(words, getattr(optim, kind)(groups, lr=0.1, weight_decay=0.1), 1)


@both_engines
def test_a_sparse_gradient_that_is_not_finite_moves_nothing(engine):
    words = model()
    optimizer = optim.Adagrad(words.named_parameters(), lr=0.1, engine=engine)
    before = [p.detach().clone() for p in words.parameters()]

    def spoil():
        words.table.weight.grad._values()[0] = math.nan

    with pytest.raises(NonFiniteError, match=r"of table\.weight\. No weight"):
        descend(words, optimizer, 3, before_step=spoil)
    assert all(map(torch.equal, words.parameters(), before))


def test_under_a_gradient_scaler_it_goes_where_it_goes_alone():
    ends = []
    for is_scaled in (False, True):
        words = model(dtype=torch.float32)
        optimizer = optim.Adagrad(words.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=is_scaled)
        for i in range(3):
            optimizer.zero_grad()
            scaler.scale(words(ids(i)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append([*words.parameters()])
    assert all(map(torch.equal, *ends))
