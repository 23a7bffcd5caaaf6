import math
import tomllib
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thalweg as tw
from thalweg import schedule
from thalweg.errors import PlanError, RuleError, ScheduleError, ThalwegError
from thalweg.optim import build
from thalweg.records.plan import Evidence, Group, Plan
from thalweg.rules import RULES
from thalweg.testing.rules import variants

positive = st.floats(1e-30, 1e30)
counts = st.integers(1, 2**62)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
schedules = st.sampled_from(
    [
        schedule.constant(),
        schedule.linear(warmup=0.1, total=2000),
        schedule.cosine(warmup="2 epochs", final=0.1),
        schedule.wsd(warmup=10, decay=0.2),
        schedule.step(every=10),
        schedule.plateau(factor=0.5, patience=3),
        schedule.sequence(schedule.linear(total=10, warmup=2), schedule.cosine()),
    ]
)
evidences = st.builds(
    Evidence,
    source=st.sampled_from(["given", "default", "derived", "measured", "searched"]),
    reason=words,
    figures=st.dictionaries(words, plain, max_size=3),
)
KNOBS = {
    "learning_rate": positive,
    "batch_size": st.none() | st.integers(4, 2**62),
    "weight_decay": st.floats(0, 1e30),
    "schedule": schedules,
    "constants": st.fixed_dictionaries({}, optional={"beta1": st.floats(0, 0.99), "beta2": st.floats(0, 0.99)}),
    "steps": st.none() | counts,
    "steps_per_epoch": st.none() | counts,
    "accumulate": st.integers(1, 4),
    "clip_norm": st.none() | positive,
    "clip_value": st.none() | positive,
    "ema": st.none() | st.floats(0.01, 0.9999),
    "precision": st.sampled_from(["float32", "bfloat16", "float16"]),
    "memory_format": st.sampled_from(["contiguous", "channels_last"]),
    "compile": st.booleans(),
    "seed": st.integers(0, 2**63 - 1),
    "weight_decay_schedule": st.none() | schedules.filter(lambda one: not one.initial_state()),
    "decay_vectors": st.booleans(),
    "groups": st.dictionaries(
        words,
        st.builds(Group, st.floats(0, 10), st.floats(0, 10), st.sampled_from([None, "adamw", "muon"])),
        max_size=3,
    ),
    "holdout": st.floats(0.0, 0.99),
    "holdout_by": st.sampled_from(["auto", "class", "group", "time", "random"]),
    "shuffle": st.booleans(),
    "replacement": st.booleans(),
    "drop_last": st.booleans(),
    "workers": st.integers(0, 64),
    "validate_every": st.none() | counts,
    "patience": st.none() | counts,
    "keep": st.sampled_from(["best", "last"]),
    "watch": st.booleans(),
    "snapshot_every": st.integers(0, 10**6),
    "checkpoint_seconds": st.floats(0, 1e9),
    "digest_every": st.integers(0, 10**6),
    "threads": st.none() | st.integers(1, 512),
    "engine": st.sampled_from(["auto", "cpu", "tensors"]),
    "evidence": st.dictionaries(st.sampled_from(["learning_rate", "batch_size", "seed"]), evidences, max_size=3),
}
knobs = st.fixed_dictionaries({}, optional=KNOBS)


def same(one, other):
    """Equality that takes NaN for equal to NaN, and 1 for unlike 1.0."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and one == other


@given(knobs)
@settings(max_examples=150, deadline=None)
def test_a_plan_comes_back_from_toml_without_loss(tmp_path_factory, given_):
    plan = Plan(**given_)
    path = tmp_path_factory.getbasetemp() / "plan.toml"
    plan.save(path)
    back = Plan.load(path)
    assert same(back.to_dict(), plan.to_dict())
    assert back.schedule == plan.schedule
    assert back.groups == plan.groups
    tomllib.loads(path.read_text("utf-8"))  # and other programs read it


def test_every_knob_is_in_the_property_above():
    assert {f.name for f in fields(Plan)} == {*KNOBS, "rule", "position"}


def test_other_rules_and_unicode_come_back(tmp_path):
    path = tmp_path / "größe 計画.toml"
    plan = Plan(
        rule="rmsprop", constants={"alpha": 0.9, "centered": True}, groups={'a."b"*': {"weight_decay_factor": 0}}
    )
    plan.save(path)
    assert Plan.load(path) == plan


@pytest.mark.parametrize(
    ("rule", "constants"),
    [pytest.param(r, c, id=f"{r.name}-{i}") for r in RULES.values() for i, c in enumerate(variants(r))],
)
def test_a_plan_by_any_rule_with_all_its_constants_comes_back_and_is_carried_out(rule, constants, tmp_path):
    grouped = {name: list(v) if isinstance(v, tuple) else v for name, v in rule.to_group(constants).items()}
    for named in (constants, grouped):
        plan = Plan(rule=rule.name, constants=named)
        plan.save(tmp_path / "plan.toml")
        assert Plan.load(tmp_path / "plan.toml") == plan
        assert rule.complete(plan.constants) == constants
        assert plan.learning_rate == rule.learning_rate
    w = torch.ones(2, 2, requires_grad=True)
    optimizer = build(plan.rule, [w], lr=plan.learning_rate, constants=plan.constants)
    w.grad = torch.ones(2, 2)
    optimizer.step()
    assert (w < 1).all()
    assert rule.from_group(optimizer.param_groups[0]) == constants


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
def test_a_plan_refuses_what_its_rule_has_not(rule):
    with pytest.raises(RuleError, match="has no constant 'drag'"):
        Plan(rule=rule.name, constants={"drag": 0.5})
    for name, wanted in rule.ranges.items():
        with pytest.raises(RuleError, match=f"{name} of {rule.name} must be a (whole )?number in "):
            Plan(
                rule=rule.name,
                constants={name: math.nextafter(wanted.low, -math.inf) if wanted.low > -math.inf else math.inf},
            )


def test_numbers_of_numpy_and_torch_become_pythons():
    plan = Plan(
        learning_rate=np.float32(0.5),
        batch_size=np.int64(8),
        steps=torch.tensor(30),
        clip_norm=torch.tensor(1.0),
        weight_decay=np.float64(0.25),
        shuffle=np.True_,
        constants={"beta1": np.float32(0.5)},
        accumulate=2.0,
        evidence={"learning_rate": Evidence("searched", figures={"seen": np.array([1.0, np.inf]), "n": np.int8(3)})},
    )
    for name in ("learning_rate", "clip_norm", "weight_decay"):
        assert type(getattr(plan, name)) is float
    for name in ("batch_size", "steps", "accumulate"):
        assert type(getattr(plan, name)) is int
    assert plan.shuffle is True
    assert plan.constants == {"beta1": 0.5}
    assert plan.evidence["learning_rate"].figures == {"seen": [1.0, math.inf], "n": 3}


def test_what_is_given_says_so_and_the_rest_is_default():
    plan = Plan(learning_rate=0.5)
    assert plan.why("learning_rate").source == "given"
    assert plan.why("batch_size").source == "default"
    assert set(Plan().evidence) == {f.name for f in fields(Plan)} - {"evidence"}
    assert {e.source for e in Plan().evidence.values()} == {"default"}


def test_a_default_that_was_changed_by_hand_in_the_file_is_given(tmp_path):
    path = tmp_path / "plan.toml"
    Plan().save(path)
    path.write_text(path.read_text().replace("shuffle = true", "shuffle = false"))
    assert Plan.load(path).why("shuffle").source == "given"


def test_what_was_derived_from_a_knob_that_is_changed_says_so():
    found = Evidence("derived", "1 / rate", {"learning_rate": 0.1})
    plan = Plan(learning_rate=0.1, weight_decay=10.0, evidence={"weight_decay": found})
    assert plan.replace(learning_rate=0.1).why("weight_decay") == found
    told = plan.replace(learning_rate=0.2).why("weight_decay").reason
    assert told == "1 / rate; derived for learning_rate 0.1, which has changed since"


def test_replacing_a_knob_makes_it_given_and_leaves_the_other_evidence():
    found = Evidence("searched", "best of 3", {"rates": [0.1, 0.2]})
    plan = Plan(learning_rate=0.1, weight_decay=0.1, evidence={"learning_rate": found, "weight_decay": found})
    other = plan.replace(weight_decay=0.0)
    assert other.why("learning_rate") == found
    assert other.why("weight_decay") == Evidence("given")
    assert plan.why("weight_decay") == found
    kept = plan.replace(weight_decay=0.3, evidence=plan.evidence)
    assert kept.why("weight_decay") == found


def test_schedules_and_groups_may_be_given_as_names_and_tables():
    assert Plan(schedule="cosine").schedule == schedule.cosine()
    assert Plan(schedule={"shape": "linear", "warmup": 5}).schedule == schedule.linear(warmup=5)
    assert Plan(weight_decay_schedule="inverse_time").weight_decay_schedule == schedule.inverse_time()
    in_steps = {"shape": "inverse_time", "timescale": 30}
    assert Plan(weight_decay_schedule=in_steps).weight_decay_schedule == schedule.inverse_time(timescale=30)
    assert Plan(groups={"*.bias": {"learning_rate_factor": 2}}).groups["*.bias"] == Group(learning_rate_factor=2.0)


def test_a_schedule_of_the_decay_is_changed_entry_by_entry_and_taken_away_by_none():
    plan = Plan(weight_decay_schedule="inverse_time")
    assert plan.with_knobs({"weight_decay_schedule": {"timescale": 7}}).weight_decay_schedule.options["timescale"] == 7
    assert plan.with_knobs({"weight_decay_schedule": None}).weight_decay_schedule is None
    assert plan.changed({"weight_decay_schedule": "constant"}).weight_decay_schedule == schedule.constant()
    with pytest.raises(ScheduleError, match="table with a `shape`"):
        Plan().with_knobs({"weight_decay_schedule": {"timescale": 7}})


def test_a_plan_of_before_decays_had_schedules_reads_as_it_was_meant():
    written = Plan(weight_decay=0.1).to_dict()
    assert "weight_decay_schedule" not in written
    del written["evidence"]["weight_decay_schedule"]
    assert Plan.from_dict(written).weight_decay_schedule is None
    assert Plan.from_dict(written).weight_decay == 0.1


REFUSED = {
    "a rate below zero": ({"learning_rate": -1}, r"`learning_rate` is -1\.0, but it must be above zero and finite\."),
    "a rate of zero": ({"learning_rate": 0}, r"`learning_rate` is 0\.0, but it must be above zero"),
    "a rate that is NaN": (
        {"learning_rate": math.nan},
        r"`learning_rate` is nan, but it must be above zero and finite",
    ),
    "an infinite rate": ({"learning_rate": math.inf}, r"`learning_rate` is inf"),
    "a rate in words": ({"learning_rate": "0.1"}, r"`learning_rate` is '0\.1', but it is a number\."),
    "no rate": (
        {"learning_rate": None},
        r"`learning_rate` is None, but it needs a value\. Leave it out for the default\.",
    ),
    "a batch of nothing": ({"batch_size": 0}, r"`batch_size` is 0, but it must be at least 1"),
    "a batch below zero": ({"batch_size": -4}, r"`batch_size` is -4, but it must be at least 1"),
    "half an example": ({"batch_size": 2.5}, r"`batch_size` is 2\.5, but it is a whole number\."),
    "a flag for a batch": ({"batch_size": True}, r"`batch_size` is True, but it is a whole number\."),
    "no steps": ({"steps": 0}, r"`steps` is 0, but it must be at least 1"),
    "steps below zero": ({"steps": -3}, r"`steps` is -3, but it must be at least 1"),
    "endless steps": ({"steps": math.inf}, r"`steps` is inf, but it is a whole number\."),
    "decay below zero": ({"weight_decay": -0.1}, r"`weight_decay` is -0\.1, but it must be at least 0 and finite\."),
    "a clip of zero": ({"clip_norm": 0}, r"`clip_norm` is 0\.0, but it must be above zero"),
    "an average that never forgets": (
        {"ema": 1.0},
        r"`ema` is 1\.0, but a decay lies between 0 and 1, such as 0\.999\.",
    ),
    "more parts than examples": (
        {"batch_size": 2, "accumulate": 3},
        r"`accumulate` is 3, more than the batch of 2 examples",
    ),
    "another precision": (
        {"precision": "bf16"},
        r"`precision` is 'bf16', which is none of \['float32', 'bfloat16', 'float16'\]",
    ),
    "a seed below zero": ({"seed": -1}, r"`seed` is -1, but it must be at least 0"),
    "a flag in words": ({"shuffle": "yes"}, r"`shuffle` is 'yes', but it is true or false\."),
    "a schedule that is a number": (
        {"schedule": 3},
        r"`schedule` is 3\. Give a shape's name or thalweg\.schedule\.linear",
    ),
    "a rule that is a class": (
        {"rule": torch.optim.Adam},
        r"`rule` is .*Give an update rule's name, such as 'adamw'\.",
    ),
    "constants in a list": ({"constants": [0.9]}, r"`constants` is \[0\.9\], but it is a table\."),
    "a group of another shape": (
        {"groups": {"*": 0}},
        r"'groups\.\*' in the plan is 0, but it is a table of learning_rate_factor, w",
    ),
    "a group's unknown key": (
        {"groups": {"*": {"lr": 1}}},
        r"'groups\.\*' in the plan has the key 'lr'\. It is called 'learning_rate_factor' here\. Known: learning_rate_factor",
    ),
    "a group's unknown rule": ({"groups": {"*": {"rule": "adamww"}}}, r"no update rule 'adamww'.*Did you mean 'adamw'"),
    "a group's rule that is a number": ({"groups": {"*": {"rule": 3}}}, r"`rule` is 3\. Give an update rule's name"),
    "a group's rate below zero": ({"groups": {"*": Group}}, r"'groups\.\*' in the plan is <class"),
    "evidence for nothing": (
        {"evidence": {"lr": Evidence("given")}},
        r"There is evidence for 'lr', which is no knob of a plan\.",
    ),
    "evidence of another kind": (
        {"evidence": {"seed": {"source": "guesed"}}},
        r"Evidence 'guesed' is none of \['given', 'default', 'derived', 'measured', 'searched'\]\.",
    ),
    "figures that are no numbers": (
        {"evidence": {"seed": {"source": "given", "figures": {"x": object()}}}},
        r"`x` is a object\. Give numbers, texts, or lists and tables of them\.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_knob_that_cannot_be_is_refused_by_name(case):
    given_, told = REFUSED[case]
    with pytest.raises(PlanError, match=told):
        Plan(**given_)


def test_a_group_checks_its_factors():
    with pytest.raises(PlanError, match=r"`weight_decay_factor` is -1\.0, but it must be at least 0"):
        Group(weight_decay_factor=-1)


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(RuleError, match="Did you mean 'adamw'"):
        Plan(rule="adamww")
    with pytest.raises(RuleError, match="beta2"):
        Plan(constants={"beta_2": 0.9})
    with pytest.raises(ScheduleError, match=r"'cosin' is no shape of a schedule\. Did you mean 'cosine'\?"):
        Plan(schedule="cosin")
    with pytest.raises(PlanError, match=r"A plan has no 'learning_rat'\. Did you mean 'learning_rate'\? It has rule, "):
        Plan().replace(learning_rat=1)


@pytest.mark.parametrize(
    ("text", "told", "kind"),
    [
        (
            "learning_rat = 1",
            r"Unknown key 'learning_rat' in the plan\. Did you mean 'learning_rate'\? Known keys: rule,",
            PlanError,
        ),
        ("rule = 'adamx'", r"Did you mean 'adam", RuleError),
        ("schedule = 'liner'", r"Did you mean 'linear'\?", ScheduleError),
        ("[schedule]\nshape = 'linear'\nwarmp = 3", r"warmp.*Did you mean 'warmup'\?", ScheduleError),
        ("schedule = 3", r"`schedule` is 3\.", PlanError),
        ("learning_rate = ", r"this is not TOML: ", PlanError),
        ("format = 99", r"The plan has format 99; this thalweg reads up to 2\. Install a newer thalweg\.", PlanError),
        ("groups = 3", r"`groups` is 3, but it is a table\.", PlanError),
        (
            "[evidence]\nseed = 'given'",
            r"'evidence\.seed' in the plan is 'given', but it is a table of source",
            PlanError,
        ),
        ("[evidence.seed]\nreason = 'x'", r"'evidence\.seed' in the plan is .* which does not fit", PlanError),
        ("batch_size = 'some'", r"`batch_size` is 'some', but it is a whole number\.", PlanError),
    ],
)
def test_a_file_that_is_no_plan_is_told_with_its_name(tmp_path, text, told, kind):
    path = tmp_path / "my plan.toml"
    path.write_text(text)
    with pytest.raises(kind, match=told) as raised:
        Plan.load(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_missing_or_not_text_is_told(tmp_path):
    with pytest.raises(PlanError, match=r"none\.toml: the plan cannot be read \(No such file or directory\)\."):
        Plan.load(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"bytes\.toml: this is not TOML"):
        Plan.load(tmp_path / "bytes.toml")
    assert issubclass(PlanError, ThalwegError)


def test_the_whole_data_set_has_a_word_of_its_own(tmp_path):
    Plan(batch_size=None).save(tmp_path / "plan.toml")
    assert 'batch_size = "all"' in (tmp_path / "plan.toml").read_text()
    assert tw.Plan.load(tmp_path / "plan.toml").batch_size is None


def test_evidence_reads_as_a_sentence():
    assert str(Evidence("derived", "a tenth")) == "derived: a tenth"
    assert str(Evidence("given")) == "given"


def test_the_default_rate_is_the_rules():
    plan = Plan(rule="prodigy")
    assert plan.learning_rate == 1.0
    assert str(plan.why("learning_rate")) == "default: the rule finds its own rate, which this only multiplies"
    assert Plan().learning_rate == 0.001
    assert str(Plan().why("learning_rate")) == "default"
    assert Plan(rule="lion").learning_rate == 1e-4
    assert str(Plan(rule="lion").why("learning_rate")) == "default: that of lion itself"
    assert Plan.from_dict(plan.to_dict()) == plan
    assert Plan(rule="prodigy", learning_rate=0.5).why("learning_rate").source == "given"


def test_a_default_rate_goes_with_its_rule_and_a_given_one_stays():
    assert Plan().replace(rule="prodigy").learning_rate == 1.0
    assert Plan().replace(rule="prodigy").why("learning_rate").source == "default"
    assert Plan(rule="prodigy").replace(rule="adamw").learning_rate == 0.001
    assert Plan(learning_rate=0.5).replace(rule="prodigy").learning_rate == 0.5
    assert Plan().replace(rule="prodigy", learning_rate=2.0).why("learning_rate").source == "given"
    assert Plan(learning_rate=0.5).replace(rule="lion").why("learning_rate").source == "given"


def test_two_averages_at_once_are_refused():
    with pytest.raises(
        PlanError, match=r"`ema` is 0\.99, but schedule_free_sgd averages the weights itself.*Leave `ema` out"
    ):
        Plan(rule="schedule_free_sgd", ema=0.99)


def test_a_plan_of_format_1_has_groups_by_their_older_names(tmp_path):
    new = Plan(groups={"head.*": Group(0.1, 0.0), "*.bias": Group(rule="lion"), "all": Group(weight_decay_factor=2)})
    text = new.to_toml()
    assert "format = 2" in text
    old = text.replace("format = 2", "format = 1").replace("_factor", "")
    (tmp_path / "old.toml").write_text(old)
    assert Plan.load(tmp_path / "old.toml") == new
    (tmp_path / "hand.toml").write_text('[groups."head.*"]\nlearning_rate = 0.1\n')
    with pytest.raises(PlanError, match=r"has the key 'learning_rate'\. It is called 'learning_rate_factor' here\."):
        Plan.load(tmp_path / "hand.toml")
    (tmp_path / "odd.toml").write_text("format = 1\ngroups = {a = 3}\n")
    with pytest.raises(PlanError, match=r"'groups\.a' in the plan is 3"):
        Plan.load(tmp_path / "odd.toml")


def test_a_plan_that_was_cut_off_anywhere_is_refused(tmp_path):
    plan = Plan(rule="lion", steps=7, schedule="cosine", groups={"*.bias": {"weight_decay_factor": 0.0}})
    text, path = plan.to_toml(), tmp_path / "plan.toml"
    for end in range(0, len(text) - 1, 7):
        path.write_text(text[:end])
        with pytest.raises(PlanError, match=r"not TOML|the plan is (cut off|empty)\. Restore it"):
            Plan.load(path)
    path.write_text(text.replace("steps = 7", "steps = 8"))  # who edits a plan may do so
    assert Plan.load(path).steps == 8
    path.write_text("steps = 9\n")  # and who writes one needs no last line
    assert Plan.load(path).steps == 9


def test_knobs_are_added_to_tables_and_only_some_can_be_changed_in_a_run():
    plan = Plan(steps=9, constants={"beta1": 0.8}, schedule="cosine").changed(
        {"constants": {"beta2": 0.9}, "steps": 12}
    )
    assert (plan.steps, plan.constants) == (12, {"beta1": 0.8, "beta2": 0.9})
    assert plan.why("steps").reason == "changed when the run was resumed"
    for name, value in {"rule": "sgd", "seed": 3, "batch_size": 8, "ema": 0.9, "shuffle": False}.items():
        with pytest.raises(PlanError, match=f"`{name}` cannot be changed within a run"):
            plan.changed({name: value})


@pytest.mark.parametrize(
    "knobs",
    [
        {"groups": {"[!\ud800]*": {}}},
        {"constants": {"\ud800": 1}},
        {"evidence": {"steps": {"source": "given", "reason": "\ud800"}}},
        {"evidence": {"steps": {"source": "given", "figures": {"rates": {"\ud800": ["a"]}}}}},
        {"evidence": {"steps": {"source": "given", "figures": {"rates": [{"a": "\ud800"}]}}}},
    ],
)
def test_a_text_that_no_file_takes_is_refused_where_the_plan_is_made(knobs):
    with pytest.raises(PlanError, match="characters that no file takes"):
        Plan(**knobs)
