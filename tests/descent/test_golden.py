"""Golden losses: a change that is not meant to alter the mathematics leaves the losses of these short runs bit for bit.

The models are tiny, run on one thread, and sum at most five terms at a time, so the bits are the same wherever torch picks
the same kernels: same version, same vector instructions, same processor. Where one differs from what was recorded, vector width
and fused multiply-add may change last bits, and the losses are compared to 1e-5 of their size instead.

A change that is meant to alter them records them anew: `python tests/descent/golden.py`, and says why in the commit.
"""

import json

import golden
import pytest

RECORDED = json.loads(golden.KEPT.read_text())


@pytest.mark.parametrize("name", golden.PLANS)
def test_losses_are_the_recorded_ones(name: str) -> None:
    found, kept = golden.losses(name), RECORDED["losses"][name]
    if golden.capability() == RECORDED["capability"]:
        assert found == kept
        return
    assert found.keys() == kept.keys()
    for column, values in found.items():
        numbers, before = ([float.fromhex(v) for v in row] for row in (values, kept[column]))
        assert numbers == pytest.approx(before, rel=1e-5)


def test_every_recorded_run_is_still_walked() -> None:
    assert RECORDED["losses"].keys() == golden.PLANS.keys()


def test_runs_that_differ_in_a_knob_differ_in_their_losses() -> None:
    kept = [json.dumps(columns) for columns in RECORDED["losses"].values()]
    assert len(set(kept)) == len(kept)
