"""Events are short, and each trouble says what was done about it and whether it came back."""

import pytest

from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.history import Event
from thalweg.see.events import event_sentences, treatments


def trouble(step, rate):
    cure = Cure("Go back.", rollback=True, rate_factor=0.5, clip_norm=1.0)
    found = Diagnosis("diverging", f"at {rate} each step overshoots.", "critical", step, cure=cure)
    return found, Event(step, "diverging", str(found), found.to_dict(), 1, True)


def back(start, to, factor):
    return Event(to, "rollback", "Went back. Go back.", {"from": start, "to": to, "rate_factor": factor}, 2, False)


def test_each_diagnosis_says_what_was_done_and_what_followed(make_run):
    (first, e1), (second, e2), (third, e3) = trouble(10, 30), trouble(10, 15), trouble(176, 4)
    events = (e1, back(10, 0, 0.5), e2, back(10, 0, 0.125), e3, back(176, 150, 0.0625))
    run = make_run(events=events, diagnoses=(first, second, third), plan={"learning_rate": 30.0})
    told = [done for _, done in treatments(run)]
    assert told == [
        "Went back to step 0, with half the planned learning rate (15 instead of 30). That was not enough: the trouble came"
        " back at step 10.",
        "Went back to step 0, with 1/8 of the planned learning rate (3.75 instead of 30). That helped until step 176, where"
        " the trouble came back.",
        "Went back to step 150, with 1/16 of the planned learning rate (1.88 instead of 30). The trouble did not"
        " come back.",
    ]


def test_a_descent_that_was_given_up_says_so_in_its_last_diagnosis(make_run):
    (first, e1), (second, e2) = trouble(10, 30), trouble(10, 15)
    events = (e1, back(10, 0, 0.5), e2, Event(0, "diverged", "Given up.", {}, 2, False))
    run = make_run(events=events, diagnoses=(first, second), summary={"status": "diverged"})
    told = [done for _, done in treatments(run)]
    assert told[0].endswith("That was not enough: the trouble came back at step 10.")
    assert told[1] == "Nothing was left to try: the descent was given up."


def test_what_happened_again_after_a_stop_is_not_taken_for_a_trouble_that_came_back(make_run):
    found, event = trouble(10, 30)
    stop = Event(5, "resume", "Went on from step 5.", {}, 3, False)
    run = make_run(events=(event, back(10, 0, 0.5), stop, event, back(10, 0, 0.5)), diagnoses=(found,))
    assert treatments(run)[0][1].endswith("The trouble did not come back.")


def test_a_batch_left_out_is_told_as_done_and_what_nobody_could_do_as_nothing(make_run):
    gone = Diagnosis("non-finite", "the loss is inf.", step=99, cure=Cure("Go back.", rollback=True))
    left = Diagnosis("non-finite", "the loss is nan.", step=3, cure=Cure("Leave this batch out and continue."))
    before = Diagnosis("high start", "it starts at 9.", cure=Cure("Scale the inputs."))
    event = Event(3, "nonfinite", "Step 3: the batch was left out.", {"epoch": 0, "batch": 2, "rows": []}, 1, False)
    told = treatments(make_run(events=(event,), diagnoses=(before, left, gone)))
    assert [done for _, done in told] == ["", "The batch was left out, and no weight took this step.", ""]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Event(9, "nonfinite", "Step 9: the batch was left out. Why.", {}, 1, False), "The batch was left out. Why."),
        (Event(2797, "resume", "Went on from step 2797.", {}, 1, False), "Went on from step 2,797."),
        (
            Event(2797, "interrupt", "Interrupted at step 2797: saved; go on with: thalweg resume r", {}, 1, False),
            "Interrupted at step 2,797: saved.",
        ),
        (
            Event(9, "nonfinite", "x", {"cause": "the loss is not finite (nan); no weight took this step."}, 1, False),
            "The loss is not finite (nan).",
        ),
        (trouble(10, 30)[1], "At 30 each step overshoots."),
    ],
)
def test_an_event_is_a_short_sentence_without_its_step_and_kind(make_run, event, said):
    assert event_sentences(make_run(events=(event,))) == [(event, said)]
