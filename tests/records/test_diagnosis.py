import json
import math

from thalweg.records import json_values
from thalweg.records.diagnosis import Cure, Diagnosis

FULL = Diagnosis(
    symptom="diverging",
    cause="each step overshoots.",
    severity="critical",
    step=212,
    since=205,
    evidence={"loss": {"value": math.inf, "threshold": 2.0}},
    ruled_out=("bad batch",),
    not_measured=("critical step",),
    consequences=("dead units",),
    examples=(3, 7),
    cure=Cure("Go back.", rollback=True, rate_factor=0.5, clip_norm=1.0),
    verified=True,
    probability=0.9,
)


def test_a_diagnosis_comes_back_from_plain_values():
    for found in (FULL, Diagnosis("x", "y")):
        text = json.dumps(json_values.encode(_listed(found.to_dict())), allow_nan=False)
        assert Diagnosis.from_dict(json_values.decode(json.loads(text))) == found


def _listed(value):
    """As JSON gives them back: lists for tuples."""
    if isinstance(value, dict):
        return {key: _listed(part) for key, part in value.items()}
    return [_listed(part) for part in value] if isinstance(value, list | tuple) else value


def test_it_reads_as_a_sentence():
    assert str(FULL) == "step 212: diverging: each step overshoots. Go back."
    assert str(Diagnosis("no slope", "all off.")) == "no slope: all off."
