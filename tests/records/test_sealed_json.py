import json
import math

import pytest

from thalweg.records import sealed_json

ENTRIES = {"status": "finished", "metrics": {"loss": 0.5, "odd": math.inf}, "steps": 2**60, "text": "0" * 64}


def test_every_other_text_is_refused():
    text = sealed_json.dump(ENTRIES)
    assert sealed_json.load(text) == ENTRIES
    assert json.loads(text)["metrics"]["loss"] == 0.5
    data = text.encode()
    for bit in range(0, 8 * len(data), 5):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            found = sealed_json.load(changed.decode())  # the flipped bit is in the key of the sum
            assert {name: found[name] for name in ENTRIES} == ENTRIES
        except (ValueError, KeyError, AttributeError):
            continue


def test_a_text_of_an_earlier_version_has_no_sum():
    assert sealed_json.load('{"status": "running"}') == {"status": "running"}
    with pytest.raises(ValueError, match="its own sum does not agree"):
        sealed_json.load(sealed_json.dump(ENTRIES).replace("0.5", "0.25"))
