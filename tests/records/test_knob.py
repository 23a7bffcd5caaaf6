"""A knob that is described at its field is checked, documented and typed from there."""

import inspect
import math
from dataclasses import dataclass, field
from typing import Literal

import pytest
import torch

from thalweg.errors import PlanError, RuleError, ThalwegError
from thalweg.records.knob import Knob, check_ranges, convert_types, knobs, reference, setting
from thalweg.records.plan import Group, Plan
from thalweg.records.request import Request


@dataclass(frozen=True)
class Record:
    count: int | None = setting(3, Knob("how many", "No more than needed.", least=1, most=9, unit="things"))
    share: float = setting(0.5, Knob("a part", above=0, below=1))
    kind: Literal["red", "green"] = setting("red", Knob("which"))
    flag: bool = setting(False, Knob("whether"))
    table: dict[str, int] = setting(dict[str, int], Knob("more of it"))
    note: str = field(default="")


def checked(**values):
    record = Record(**values)
    convert_types(record)
    check_ranges(record)
    return record


def test_what_the_annotation_says_is_part_of_the_knob():
    found = knobs(Record)
    assert list(found) == ["count", "share", "kind", "flag", "table"]
    assert (found["count"].kind, found["count"].optional, found["count"].default) == (int, True, 3)
    assert (found["share"].kind, found["share"].optional) == (float, False)
    assert found["kind"].choices == ("red", "green")
    assert found["table"].default == {}
    assert Record().table is not Record().table


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"count": 0}, "`count` is 0, but it must be at least 1 and finite."),
        ({"count": 10}, "`count` is 10, but it is at most 9."),
        ({"count": "3"}, "`count` is '3', but it is a whole number."),
        ({"count": 1.5}, "`count` is 1.5, but it is a whole number."),
        ({"share": 0}, "`share` is 0.0, but it must be above zero and finite."),
        ({"share": math.nan}, "`share` is nan, but it must be above zero and finite."),
        ({"share": 1}, "`share` is 1.0, but it must be below 1."),
        ({"share": None}, "`share` is None, but it needs a value. Leave it out for the default."),
        ({"kind": "gren"}, "`kind` is 'gren', which is none of ['red', 'green']. Did you mean 'green'?"),
        ({"flag": 1}, "`flag` is 1, but it is true or false."),
    ],
)
def test_a_value_that_does_not_fit_the_description_is_refused(values, told):
    with pytest.raises(PlanError) as refused:
        checked(**values)
    assert str(refused.value) == told


def test_a_value_that_fits_is_taken_in_its_own_type():
    assert checked(count=2.0).count == 2
    assert type(checked(share=1 / 4).share) is float
    assert checked(count=None).count is None


def test_the_reference_has_meaning_range_and_detail():
    assert reference(Record).splitlines()[0] == (
        "        count: how many (things, at least 1, at most 9, or None). No more than needed."
    )


@pytest.mark.parametrize("record", [Plan, Group])
def test_every_knob_stands_in_the_docstring(record):
    text = inspect.getdoc(record)
    for name, knob in knobs(record).items():
        assert f"\n    {name}: {knob.meaning}"[:60] in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("value", [10**400, torch.ones((), device="meta"), torch.ones(2)], ids=["huge", "meta", "two"])
def test_what_no_number_can_be_is_a_sentence_in_a_plan_and_a_request(value):
    for knob in ("learning_rate", "clip_norm", "ema", "steps"):
        if not (knob == "steps" and isinstance(value, int)):
            with pytest.raises(PlanError, match=rf"`{knob}` is "):
                Plan(**{knob: value})
    with pytest.raises((PlanError, RuleError), match=r"beta1|constants"):
        Plan(constants={"beta1": value})
    for budget in ("epochs", "steps", "seconds", "effort"):
        with pytest.raises(ThalwegError, match=budget):
            Request(**{budget: value}).check_budget()
