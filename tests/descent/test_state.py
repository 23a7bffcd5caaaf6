"""The living state: saved, restored, and gone back to without a bit of difference."""

from pathlib import Path

import pytest
import torch
from small import classes, network, plan, started, walk
from torch import nn

import thalweg as tw
from thalweg.descent.state import Descent, clone_into, default_validate_every, with_metric_mode
from thalweg.watch.changes import Changes


def test_a_state_saved_and_restored_walks_the_same_way() -> None:
    task = classes(model=lambda: network(nn.BatchNorm1d(12), nn.Dropout(0.3)))
    made = plan(ema=0.9, schedule=tw.schedule.plateau(patience=0), validate_every=4)
    descent, recorder = started(task, made)
    walk(descent, recorder, until=13)
    kept = clone_into(None, descent.state_dict())
    walk(descent, recorder)
    other, recorder = started(task, made.replace(seed=0))
    other.load_state_dict(kept)
    assert other.step == 13
    walk(other, recorder)
    assert other.digest() == descent.digest()


def test_a_snapshot_is_not_moved_by_the_steps_after_it() -> None:
    descent, recorder = started(classes(), plan(snapshot_every=10))
    walk(descent, recorder, until=10)
    digest = descent.digest()
    walk(descent, recorder, until=11)  # the loss at step 10's weights is known only now
    snapshot = descent.snapshot
    assert snapshot is not None
    walk(descent, recorder, until=19)
    assert descent.snapshot is snapshot
    assert descent.digest() != digest
    descent.load_state_dict(snapshot, rollback=True)
    assert (descent.step, descent.digest()) == (10, digest)


def test_going_back_keeps_what_was_learnt_and_restoring_does_not() -> None:
    descent, _ = started(classes(), plan())
    before = clone_into(None, descent.state_dict())
    descent.change(Changes(rate_factor=0.25, clip_norm=2.0))
    descent.skipped_batches.append((0, 3))
    descent.best_validation = {"value": 1.0, "step": 7}
    descent.load_state_dict(before, rollback=True)
    assert (descent.changes.rate_factor, descent.optimizer.clip_norm, descent.skipped_batches) == (0.25, 2.0, [(0, 3)])
    descent.load_state_dict(before)
    assert (descent.changes.rate_factor, descent.optimizer.clip_norm, descent.skipped_batches) == (1.0, None, [])
    assert descent.best_validation is None


@pytest.mark.parametrize("name", ["0.weight", "2.bias"])
def test_the_digest_sees_every_bit(name: str) -> None:
    descent, _ = started(classes(), plan())
    before = descent.digest()
    tensor = descent.model.get_parameter(name).detach()
    tensor.view(torch.int32).reshape(-1)[-1] ^= 1
    assert descent.digest() != before
    tensor.view(torch.int32).reshape(-1)[-1] ^= 1
    assert descent.digest() == before


def test_biases_and_normalisation_are_not_decayed_unless_the_plan_says_so() -> None:
    task = classes(model=lambda: network(nn.BatchNorm1d(12)))
    for vectors, decayed in ((False, {"0.weight", "3.weight"}), (True, None)):
        descent, _ = started(task, plan(weight_decay=0.1, decay_vectors=vectors))
        groups = descent.optimizer.param_groups
        found = {name for group in groups if group["weight_decay"] for name in group["param_names"]}
        assert found == (decayed or {name for name, _ in descent.model.named_parameters()})


def test_a_group_that_matches_nothing_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(tw.PlanError, match=r"matches no trainable parameter.*2\.weight"):
        started(classes(), plan(groups={"2.wieght": tw.Group()}))


def test_factors_of_groups_that_match_the_same_name_multiply_in_any_order() -> None:
    groups = {"*": tw.Group(0.5, 0.5), "2.*": tw.Group(3.0), "*.bias": tw.Group(weight_decay_factor=0.1)}
    for order in (groups, dict(reversed(groups.items()))):
        descent, _ = started(classes(), plan(learning_rate=0.1, weight_decay=0.2, decay_vectors=True, groups=order))
        found = {
            name: (round(group["lr"] / descent.rate(), 6), round(group["weight_decay"], 6))
            for group in descent.optimizer.param_groups
            for name in group["param_names"]
        }
        assert found["0.weight"] == (0.5, 0.1)
        assert found["0.bias"] == (0.5, 0.01)
        assert found["2.weight"] == (1.5, 0.1)
        assert found["2.bias"] == (1.5, 0.01)


def test_a_plateau_faces_the_tasks_criterion_also_within_a_sequence() -> None:
    schedule = tw.schedule.sequence(tw.schedule.constant(total=5), tw.schedule.plateau())
    assert with_metric_mode(schedule, "max").parts[1].options["mode"] == "max"
    assert with_metric_mode(tw.schedule.linear(), "max") == tw.schedule.linear()


def test_validations_are_five_to_fifty_a_run() -> None:
    for total in (1, 7, 100, 5000):
        for epoch in (None, 1, 30, 10**6):
            count = total // default_validate_every(total, epoch)
            assert min(total, 5) <= count <= 50


class Text(nn.Module):
    """The output layer is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(6, 3)
        self.embedding = nn.Embedding(5, 6)
        self.mix = nn.Linear(6, 6)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.scores(self.mix(self.embedding(words)).tanh().mean(1))


def text() -> tw.Task:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(5, (64, 4), generator=generator)
    return classes(model=Text, data=(words, words[:, 0] % 3), validation=(words, words[:, 0] % 3))


def rules_of(descent: Descent) -> dict[str, str]:
    own = descent.optimizer.rule.name
    return {name: group.get("rule", own) for group in descent.optimizer.param_groups for name in group["param_names"]}


def test_under_muon_adamw_moves_embeddings_and_the_output_layer_and_the_plan_says_so() -> None:
    descent, _ = started(text(), plan(rule="muon"))
    moved = rules_of(descent)
    assert {name for name, rule in moved.items() if rule == "muon" and name.endswith("weight")} == {"mix.weight"}
    assert moved["embedding.weight"] == moved["scores.weight"] == "adamw"
    told = str(descent.plan.why("groups"))
    assert "muon moves 1 hidden matrix; adamw moves scores.weight (output layer), embedding.weight (embedding)" in told
    assert descent.plan.groups["scores.weight"].rule == "adamw"


def test_under_muon_a_perceptrons_last_layer_alone_goes_by_adamw() -> None:
    descent, recorder = started(classes(model=lambda: network(nn.Tanh(), nn.Linear(12, 12))), plan(rule="muon"))
    moved = rules_of(descent)
    assert {name for name, rule in moved.items() if rule == "adamw"} == {"4.weight"}
    walk(descent, recorder, until=2)
    keys = {name: set(state) - {"step"} for name, state in descent.state_dict()["optimizer"].items()}
    assert keys["0.weight"] == keys["2.weight"] == {"momentum_buffer"}
    assert keys["4.weight"] == keys["0.bias"] == {"exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("rule", ["adamw", "adafactor"])
def test_other_rules_move_everything_and_have_no_such_groups(rule: str) -> None:
    descent, _ = started(text(), plan(rule=rule))
    assert set(rules_of(descent).values()) == {rule}
    assert descent.plan.groups == {}


def test_what_the_person_says_of_a_weights_rule_and_rate_holds() -> None:
    groups = {"emb*": tw.Group(rule="muon"), "scores.weight": tw.Group(0.1), "scores.bias": tw.Group(rule="lion")}
    descent, _ = started(text(), plan(rule="muon", groups=groups))
    moved = rules_of(descent)
    assert (moved["embedding.weight"], moved["scores.weight"], moved["scores.bias"]) == ("muon", "adamw", "lion")
    rates = {name: group["lr"] for group in descent.optimizer.param_groups for name in group["param_names"]}
    assert rates["scores.weight"] == pytest.approx(0.1 * rates["mix.weight"])
    assert descent.plan.why("groups").source == "given"


def test_a_plan_of_one_model_is_settled_anew_for_another_and_for_another_rule() -> None:
    settled = started(text(), plan(rule="muon"))[0].plan
    for changes, task in (({}, text()), ({"seed": 1}, text())):
        assert started(task, settled.replace(**changes))[0].plan.groups == settled.groups
    other = started(classes(), settled)[0]
    assert other.plan.groups == {"2.weight": tw.Group(rule="adamw")}
    assert started(text(), settled.replace(rule="adamw"))[0].plan.groups == {}


def test_a_plan_with_such_groups_is_written_and_read_without_loss(tmp_path: Path) -> None:
    settled = started(text(), plan(rule="muon"))[0].plan
    settled.save(tmp_path / "plan.toml")
    assert tw.Plan.load(tmp_path / "plan.toml") == settled
