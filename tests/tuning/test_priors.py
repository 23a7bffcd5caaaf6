import math

import pytest

from thalweg import rules
from thalweg.records.plan import Plan
from thalweg.tuning import priors


def test_a_rule_of_another_order_has_its_usual_rate_there():
    assert [priors.usual_rate(r) for r in ("adamw", "sgd", "lion", "prodigy")] == [0.0226, 0.1, 0.0147, 1.0]
    assert [priors.usual_rate(r) for r in ("adagrad", "nadam", "adadelta", "schedule_free_sgd")] == [
        0.0226,
        0.0226,
        22.6,
        1.0,
    ]


def test_a_longer_run_wants_a_lower_rate():
    rates = [priors.usual_rate("adamw", steps) for steps in (1, 1000, 4000, 100_000)]
    assert rates == [0.0226, 0.0226, 0.0113, 0.00226]
    assert priors.usual_rate("lion", 4000) == 0.00735
    assert priors.usual_rate("momentum", 10) == priors.usual_rate("momentum", 10_000)


ADAPTIVE = [
    *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "lion", "muon", "nadam", "normuon"),
    *("prodigy", "radam", "rmsprop", "schedule_free_adamw"),
]


def test_which_rules_are_adaptive_is_known():
    plain = ["gradient_descent", "momentum", "nesterov", "schedule_free_sgd"]
    assert {rule: priors.is_adaptive(rule) for rule in (*ADAPTIVE, *plain)} == {
        **dict.fromkeys(ADAPTIVE, True),
        **dict.fromkeys(plain, False),
    }


def test_weights_forget_over_a_third_of_the_run():
    value, why = priors.weight_decay("adamw", 0.01, 1000)
    assert value * 0.01 * 1000 * 0.3 == pytest.approx(1, rel=0.01)
    assert "2405.13698" in why.reason
    assert priors.weight_decay("adamw", 1e-6, 10)[0] == 1.0
    assert priors.weight_decay("momentum", 0.1, 1000)[0] == 1e-4
    assert priors.weight_decay("radam", 0.01, 1000)[0] == priors.weight_decay("adam", 0.01, 1000)[0] == 0
    assert priors.weight_decay("radam", 0.01, 1000, {"decoupled_weight_decay": True})[0] == value


def test_rates_below_the_usual_one_and_rules_with_an_average_forget_over_the_whole_run():
    usual = priors.usual_rate("adamw", 4000)
    shares = [priors.usual_timescale("adamw", rate, 4000) for rate in (0.5 * usual, 0.99 * usual, usual, 3 * usual)]
    assert shares == [1.0, 1.0, 0.3, 0.3]
    assert [priors.usual_timescale("schedule_free_adamw", rate, 4000) for rate in (0.5 * usual, 3 * usual)] == [
        1.0,
        1.0,
    ]
    assert {*shares} <= {*priors.TIMESCALES}  # so that a search tries the others


def test_a_decay_in_log_time_begins_higher_and_shrinks_weights_as_much_over_the_run():
    plan = Plan("muon", learning_rate=0.01, schedule="linear", weight_decay_schedule="inverse_time")
    start = priors.decay_start(plan, 1000)
    assert start == pytest.approx(0.5 / (0.1 * math.log(11)), rel=0.01)
    value, why = priors.weight_decay("muon", 0.01, 1000, start=start)
    assert value == pytest.approx(start * priors.weight_decay("muon", 0.01, 1000)[0], rel=5e-3)
    assert f"times {start:.3g} at its start" in why.reason
    short = priors.weight_decay("muon", 1e-6, 10, start=2.0)
    assert short[0] == 2 * priors.MOST_DECAY  # which bounds what falls with the rate
    assert priors.weight_decay("muon", 0.01, 1000, timescale=None, start=start)[0] == 0


@pytest.mark.parametrize(
    ("rate", "steps", "words"),
    [
        (0.01, 1000, "1 / (rate 0.01 x 0.3 x 1000 steps): weights forget over 30%"),
        (6.94e-3, 192, "the most that is taken, as 1 / (rate 0.00694 x 0.3 x 192 steps) = 2.5 would be more"),
        (1e-6, 10, "= 3.33e+05 would be more"),
    ],
)
def test_a_weight_decay_follows_from_what_stands_beside_it(rate, steps, words):
    value, why = priors.weight_decay("adamw", rate, steps)
    assert words in why.reason
    assert value == pytest.approx(min(1.0, 1 / (rate * 0.3 * steps)), rel=5e-3)


@pytest.mark.parametrize(
    ("rule", "chosen", "steps", "expected"),
    [
        ("adamw", {"beta2": 0.99}, 10_000, (200, "2 / (1 - 0.99) = 200 steps (arXiv:1910.04209)")),
        (
            "adamw",
            {"beta2": 0.99},
            135,
            (27, "20% of the run, as 2 / (1 - 0.99) = 200 steps (arXiv:1910.04209) would be more"),
        ),
        ("momentum", {}, 120, (12, "a tenth of the run")),
    ],
)
def test_a_warm_up_follows_from_what_stands_beside_it(rule, chosen, steps, expected):
    assert priors.warmup_steps(rule, chosen, steps) == expected


def test_short_runs_have_a_shorter_second_moment():
    assert priors.constants("adamw", 500)[0] == {"beta2": 0.99}
    assert priors.constants("adamw", 10_000)[0] == {}
    assert priors.constants("momentum", 500)[0] == {}
    assert priors.constants("lion", 500)[0] == {}  # 0.99 already


@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("steps", [1, 7, 1000, 10**6])
def test_warm_up_is_at_most_a_fifth_of_the_run_and_a_tenth_without_a_second_moment(rule, steps):
    chosen, _ = priors.constants(rule, steps)
    warmup, _ = priors.warmup_steps(rule, chosen, steps)
    most = 5 if {"beta2", "alpha"} & {*rules.get(rule).constants} else 10
    assert 1 <= warmup <= max(1, steps // most)


def test_candidates_have_had_their_whole_rate_where_they_are_first_judged():
    chosen = {"beta2": 0.99}
    for judged, warmup in ((0.05, 30), (0.1, 30), (0.15, 45), (0.35, 60)):
        assert priors.schedule("adamw", chosen, 300, priors.warmup_share(judged))[0].warmup == warmup
        assert priors.schedule("muon", {}, 300, priors.warmup_share(judged))[0].warmup == 30


def test_warm_up_lasts_as_long_as_the_second_moment_needs():
    assert priors.warmup_steps("adamw", {"beta2": 0.99}, 10**5)[0] == 200
    assert priors.warmup_steps("adamw", {}, 10**5)[0] == 2000


@pytest.mark.parametrize("rule", rules.RULES)
def test_every_schedule_says_where_it_comes_from(rule):
    schedule, why = priors.schedule(rule, {}, 1000)
    own = rules.get(rule)
    wanted = "cosine" if own.finds_rate else "linear" if own.average is None else "constant"
    assert schedule.shape == wanted
    assert "arXiv:" in why.reason
    assert why.figures.get("warmup", 0) == schedule.warmup
