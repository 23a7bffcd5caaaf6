import math

import example_claims as claims
import pytest
import torch

from thalweg.errors import TaskError
from thalweg.examples import chars, load


@pytest.fixture(scope="module")
def task():
    return load("chars")


def test_rows_are_codes_of_64_characters_and_targets_the_characters_that_follow(task):
    for x, y in claims.parts(task):
        assert x.shape == y.shape
        assert x.shape[1] == 64
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert torch.equal(x[1:, 0], y[:-1, -1])


def test_rows_spell_the_text():
    text = "\n\n".join(chars.paragraphs())
    alphabet = "".join(sorted(set(text)))
    x, _ = chars.pieces(text, alphabet, 50)
    spelled = "".join(alphabet[code] for code in x.flatten().tolist())
    assert text.startswith(spelled)
    assert len(text) - len(spelled) <= 50


def test_no_paragraph_stands_on_both_sides_of_the_split():
    text = chars.paragraphs()
    assert len(set(text)) == len(text)


def test_about_the_last_tenth_of_the_text_is_held_out(task):
    (x, _), (xv, _) = claims.parts(task)
    assert 0.07 < len(xv) / (len(x) + len(xv)) < 0.13


def test_all_characters_of_the_validation_text_are_known_to_the_model(task):
    (x, y), (xv, yv) = claims.parts(task)
    alphabet = task.make_model().scores.out_features
    assert max(int(part.max()) for part in (x, y, xv, yv)) < alphabet


def test_the_task_comes_out_the_same_each_time():
    claims.comes_out_the_same_each_time("chars")


def test_the_model_is_fresh_each_time_and_seeded_by_the_caller(task):
    claims.makes_another_model_each_time_from_the_callers_seed(task)


def test_the_loss_starts_near_that_of_a_uniform_guess(task):
    claims.starts_near_the_constant_predictor(task, within=0.1)


def test_the_model_can_fit_one_batch():
    claims.can_fit_one_batch(load("chars", length=16), steps=80, count=4)


def test_the_model_sees_no_character_before_its_turn(task):
    model = claims.model_of(task)
    (x, _), _ = claims.parts(task)
    other = x[:2].clone()
    other[:, 30:] = 0
    with torch.no_grad():
        scores, changed = model(x[:2]), model(other)
    assert torch.allclose(scores[..., :30], changed[..., :30])
    assert not torch.allclose(scores[..., 30:], changed[..., 30:])


def test_bits_of_a_uniform_guess_are_the_logarithm_of_the_alphabet():
    assert math.isclose(chars.bits(torch.zeros(2, 32, 5), torch.zeros(2, 5, dtype=torch.long)), 5.0, rel_tol=1e-6)


def test_a_row_longer_than_the_held_out_text_is_refused():
    with pytest.raises(TaskError, match="length is 100000, but the text has only"):
        load("chars", length=100_000)


def test_a_wrong_share_is_refused():
    with pytest.raises(TaskError, match="held_out is 1"):
        load("chars", held_out=1)
