"""The contract of causes: ours keep it, and what breaks it is named."""

from dataclasses import replace

import pytest

from thalweg.records.diagnosis import Diagnosis
from thalweg.testing import check_cause
from thalweg.watch.cause import Cause, each_step
from thalweg.watch.causes import CAUSES


@pytest.mark.parametrize("name", CAUSES)
def test_our_causes_keep_the_contract(name):
    check_cause(CAUSES[name])


SOUND = Cause("tall-loss", "the loss is tall", during=each_step(lambda window: None))


class Forgetful:
    """Counts steps, and saves nothing of it."""

    suspicious = False

    def __init__(self):
        self.seen = 0

    def observe(self, window):
        self.seen += 1
        return Diagnosis("late", "many steps.", "note") if self.seen > 310 else None

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


BROKEN = {
    "small letters and hyphens": replace(SOUND, name="Tall Loss"),
    "no question": replace(SOUND, during=None),
    "not measured": replace(SOUND, before=lambda figures: [Diagnosis("high", "it is.")]),
    "empty history": replace(SOUND, after=lambda history: [Diagnosis("high", "it is.")]),
    "alarm on a healthy loss": replace(SOUND, during=each_step(lambda window: Diagnosis("high", "it is."))),
    "saved and loaded": replace(SOUND, during=Forgetful),
}


@pytest.mark.parametrize("complaint", BROKEN)
def test_what_breaks_the_contract_is_named(complaint):
    check_cause(SOUND)
    with pytest.raises(AssertionError, match=complaint):
        check_cause(BROKEN[complaint])
