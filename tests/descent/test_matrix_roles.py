"""Which matrices stand at a network's ends: seen in the graph of the loss, whatever the order of registration."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import classes, started, walk
from small import plan as plan_of
from torch import Tensor, nn

import thalweg as tw
from thalweg.descent.late_weights import train_unfrozen
from thalweg.descent.matrix_roles import matrix_roles
from thalweg.descent.problem import open_task


def ends_of(model: nn.Module, loss: Tensor) -> dict[str, str]:
    return {name: place for name, place in matrix_roles(model, loss).items() if place != "hidden"}


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3))


X, Y = torch.linspace(-1, 1, 20).view(5, 4), torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize(
    "loss",
    [
        lambda out: F.cross_entropy(out, Y),
        lambda out: F.mse_loss(out.squeeze(), torch.zeros(5, 3)),
        lambda out: (out.log_softmax(1).exp() * 2).sum() / 3,
        lambda out: F.cross_entropy(out.T.unsqueeze(0), torch.zeros(1, 5).long()),
    ],
)
def test_the_last_linear_layer_is_the_output_whatever_the_loss(loss: Any) -> None:
    model = perceptron()
    assert matrix_roles(model, loss(model(X))) == {
        "0.weight": "hidden",
        "2.weight": "hidden",
        "4.weight": "output layer",
    }


def test_a_penalty_on_all_weights_does_not_bring_them_nearer() -> None:
    model = perceptron()
    loss = F.cross_entropy(model(X), Y) + 1e-3 * sum((p * p).sum() for p in model.parameters())
    assert ends_of(model, loss) == {"4.weight": "output layer"}


def test_the_order_of_registration_does_not_matter() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(6, 3), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).relu())

    model = Turned()
    assert ends_of(model, F.cross_entropy(model(X), Y)) == {"head.weight": "output layer"}


def test_tied_weights_are_one_embedding_and_used_without_a_module() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.mix, self.spare = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, words: Tensor) -> Tensor:
            return F.linear(self.mix(self.words(words)), self.words.weight)

    model = Tied()
    loss = F.cross_entropy(model(torch.tensor([[1, 2], [3, 4]])).flatten(0, 1), torch.tensor([1, 2, 3, 4]))
    assert matrix_roles(model, loss) == {"words.weight": "embedding", "mix.weight": "hidden", "spare.weight": "hidden"}


@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM])
def test_recurrent_weights_are_hidden(cell: Any) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.memory, self.scores = nn.Embedding(9, 4), cell(4, 5, batch_first=True), nn.Linear(5, 9)

        def forward(self, words: Tensor) -> Tensor:
            return self.scores(self.memory(self.words(words))[0]).transpose(1, 2)

    model, words = Recurrent(), torch.tensor([[1, 2], [3, 4]])
    found = ends_of(model, F.cross_entropy(model(words), words))
    assert found == {"words.weight": "embedding", "scores.weight": "output layer"}


def test_in_a_transformer_attention_and_feed_forward_are_hidden() -> None:
    body = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Embedding(9, 8), body, nn.Linear(8, 9, bias=False))
    words = torch.tensor([[1, 2, 3], [3, 4, 5]])
    found = ends_of(model, F.cross_entropy(model(words).flatten(0, 1), words.flatten()))
    assert found == {"0.weight": "embedding", "2.weight": "output layer"}


def test_filters_at_the_end_are_the_output_and_a_residual_stream_without_a_head_ends_in_its_last_layer() -> None:
    pictures = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    assert ends_of(pictures, pictures(torch.ones(1, 1, 5, 5)).square().mean()) == {"2.weight": "output layer"}

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x)
            return x

    model = Stream()
    assert ends_of(model, model(X).square().mean()) == {"layers.2.weight": "output layer"}


def test_where_the_graph_shows_no_product_the_last_linear_layer_registered_is_taken() -> None:
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, *weights: Tensor) -> Tensor:
            return weights[0].sum()

        @staticmethod
        def backward(context: Any, *slopes: Tensor) -> Any:
            return None

    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), nn.LayerNorm(3))
    assert ends_of(model, Opaque.apply(*model.parameters())) == {"1.weight": "output layer"}
    plain = nn.ParameterDict({"a": torch.ones(2, 2), "b": torch.ones(2, 2)})
    assert ends_of(plain, Opaque.apply(*plain.values())) == {"b": "output layer"}


def test_frozen_weights_have_no_place() -> None:
    model = perceptron()
    model[0].weight.requires_grad_(False)
    assert matrix_roles(model, F.cross_entropy(model(X), Y)) == {"2.weight": "hidden", "4.weight": "output layer"}


class Spectral(nn.Module):
    """A complex matrix between two real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.mix = nn.Parameter(torch.eye(6, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.body(x).to(torch.complex64) @ self.mix).real)


def test_complex_matrices_are_left_to_the_rule_that_moves_them() -> None:
    plan = tw.tune(classes(model=Spectral), steps=6, effort=1, progress=False)
    assert {pattern: group.rule for pattern, group in plan.groups.items()} == {"head.weight": "adamw", "mix": "adamw"}
    assert "mix (complex)" in plan.why("groups").reason
    run = tw.train(classes(model=Spectral), plan, progress=False)
    assert not torch.equal(run.model.mix, Spectral().mix)


def test_beside_a_frozen_output_layer_the_last_trained_one_is_hidden() -> None:
    def model() -> nn.Module:
        made = perceptron()
        made[4].requires_grad_(False)
        return made

    run = tw.train(tw.Task(model, F.cross_entropy, (X, Y)), tw.Plan(rule="muon", learning_rate=0.01), steps=1)
    assert run.plan.groups == {}
    assert not run.model[4].weight.requires_grad


@pytest.mark.parametrize("frozen", ["head.weight", "mix", "words.weight"])
def test_what_is_unfrozen_later_is_moved_by_the_rule_of_its_role(frozen: str) -> None:
    class Worded(Spectral):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 4)
            self.get_parameter(frozen).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.words(x[:, 0].long().abs() % 9))

    descent, recorder = started(classes(model=Worded), plan_of(rule="muon"))
    descent.model.get_parameter(frozen).requires_grad_(True)
    train_unfrozen(descent, recorder)
    group = descent.optimizer.param_groups[-1]
    assert (group["param_names"], group["rule"]) == ([frozen], "adamw")
    walk(descent, recorder)


def test_a_step_of_ones_own_is_seen_through() -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y, label_smoothing=0.1) + 1e-4 * sum(
            p.square().sum() for p in model.parameters()
        )

    descent, _ = started(classes(loss=None, step=step, metrics={}), plan_of(rule="muon"))
    assert list(descent.plan.groups) == ["2.weight"]


class Counting(nn.Module):
    """A loss with a buffer that every call changes, and that changes the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(output, target) * self.calls


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_a_loss_with_buffers_begins_training_as_it_was_given(rule: str) -> None:
    loss = Counting()
    descent, _ = started(classes(loss=loss), plan_of(rule=rule))
    assert loss.calls.item() == 0
    assert [buffer.item() for buffer in descent.problem.objective.loss_buffers.values()] == [0]


def test_code_that_takes_no_batch_of_two_examples_is_given_more() -> None:
    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return F.cross_entropy(model(inputs), targets) + 0 * inputs[2].sum()

    task = tw.Task(lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), data=classes().data, step=step)
    assert open_task(task).matrix_roles == {"0.weight": "hidden", "1.weight": "output layer"}
