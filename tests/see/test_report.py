"""The report tells the run, in one file that loads and runs nothing else."""

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from thalweg import schedule
from thalweg.errors import RunError
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.history import Event
from thalweg.records.plan import Evidence, Plan
from thalweg.records.run import HistoryColumns, Run
from thalweg.see.advice import next_steps
from thalweg.see.report import render, write_report
from thalweg.see.summary import print_summary

VOID = {"meta", "path"}


class Page(HTMLParser):
    """Reads a page, and fails where elements are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.data = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.data if self.open[-1:] in (["script"], ["style"]) else self.text).append(data)

    def says(self, words):
        return words in " ".join(" ".join(self.text).split())


def charts(text):
    return re.findall(r"<figcaption><b>([^<]*)</b>", text)


def test_says_result_against_the_start_steps_time_device_and_which_weights(make_run):
    page = Page(render(make_run()))
    assert page.says(
        "Accuracy rose from 8 % to 98 % and validation loss fell from 2.45 to 0.15, in 400 steps (20 epochs) and 3.4 s"
        " on the CPU."
    )
    assert page.says("The model holds the weights of step 400, those with the lowest validation loss.")


def test_draws_loss_metrics_rate_gradient_and_search(make_run):
    expected = [
        "Loss",
        "Accuracy",
        "Learning rate",
        "Gradient norm",
        "Temperature of the noise",
        "Learning-rate search",
    ]
    expected += ["Batch size", "Throughput", "Memory"]
    assert charts(render(make_run())) == expected


def test_shows_every_knob_with_its_value_source_and_reason(make_run):
    run = make_run()
    page = Page(render(run))
    for knob in run.plan.to_dict():
        if knob not in ("format", "evidence"):
            assert page.says({"ema": "EMA"}.get(knob, knob.replace("_", " "))), knob
    assert page.says("linear to zero over 400 steps, the first 40 in linear warm-up")
    assert page.says("searched best of 10 short runs")


def test_nothing_that_a_task_names_becomes_markup(hostile):
    text = render(hostile)
    page = Page(text)
    assert page.tags.count("script") == 1 + text.count('class="chart"')  # ours, and each chart's data
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert not any(c < " " and c != "\n" for c in text)
    assert page.says("<script>alert('x')</script>")


def test_loads_nothing_from_elsewhere(rescued):
    text = render(rescued)
    assert not re.search(r"(src|href)=|url\(|@import|https?://", text)
    assert "default-src 'none'" in text


def test_the_browser_is_told_the_hash_of_the_script_that_stands_in_the_page(make_run):
    import base64
    import hashlib

    text = render(make_run())
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_rollback_is_marked_shaded_told_and_explained(rescued):
    text = render(rescued)
    page = Page(text)
    assert "steps 100 to 120 were repeated" in text
    assert 'class="mark rollback"' in text
    went = "Went back to step 100, with half the planned learning rate (0.0015 instead of 0.003) and gradients clipped at 1."
    assert page.says(f"step 120 rolled back {went}")
    assert page.says("Step 120: diverging, abnormal since step 112 (90% sure)")
    assert page.says("9.1 (expected: at most 4.2)")
    assert page.says(f"Done: {went} The trouble did not come back. It was tried and works.")
    assert page.says("Not measured: whether a single bad batch was at fault.")
    assert "Go back, halve" not in text  # it was done, and is told as done


def test_a_finding_before_training_names_its_figure_and_what_to_do(make_run):
    symptom = "one batch cannot be fitted"
    evidence = {"loss after 100 steps": {"value": 32_478.0, "threshold": 3991.0}}
    found = Diagnosis(symptom, "too slow.", evidence=evidence, cure=Cure("Check the labels."))
    page = Page(render(make_run(diagnoses=(found,))))
    assert page.says("Before training: one batch cannot be fitted")
    assert page.says("What to do: Check the labels.")
    assert page.says("loss after 100 steps 32,478 (expected: at most 3,991)")


def test_the_short_runs_of_the_search_stand_in_a_table(make_run):
    page = Page(render(make_run()))
    assert page.says("learning rate steps seed score (lower is better) 1e-05 80 0 2.3 0.0001 80 0 2.1")
    assert page.says("0.003 225 1000 0.22")
    assert page.says("1.0 80 0 diverged") or page.says("1 80 0 diverged")
    assert page.says("price of search and training, in full trainings 3.7")


def test_a_rate_that_was_tried_from_several_seeds_is_one_point(make_run):
    data = [json.loads(d) for d in Page(render(make_run())).data if '"after 225 steps"' in d]
    (long,) = [line for line in data[0]["lines"] if line["name"] == "after 225 steps"]
    assert long["x"] == [0.001, 0.003, 0.01]
    assert long["y"] == [0.4, 0.21, 0.3]


def test_a_batch_size_that_is_not_the_fastest_says_why_it_was_chosen(make_run):
    words = "32 was chosen although 64 is faster: it gives 2 times as many steps for the same examples, here 400"
    run = make_run()
    evidence = {**run.plan.evidence, "steps": Evidence("derived", "20 epochs of 20 steps")}
    assert Page(render(replace(run, plan=run.plan.replace(evidence=evidence)))).says(words)
    assert not Page(render(make_run(plan={"batch_size": 64}))).says("was chosen although")


def test_where_the_steps_are_given_a_batch_size_is_not_said_to_give_more_of_them(make_run):
    run = make_run()
    evidence = {**run.plan.evidence, "steps": Evidence("given")}
    evidence["batch_size"] = replace(evidence["batch_size"], reason="the smallest that is half as fast")
    page = Page(render(replace(run, plan=run.plan.replace(evidence=evidence))))
    assert page.says("32 was chosen although 64 is faster: it is the smallest that is half as fast.")
    assert not page.says("as many steps")


@pytest.mark.parametrize(
    ("scale", "told"), [(0.5, "1 step of 400 was shortened"), (1.0, "0 steps of 400 were shortened")]
)
def test_one_step_that_was_shortened_is_told_in_the_singular(make_run, scale, told):
    scales = np.ones(401)
    scales[0], scales[7] = np.nan, scale
    assert Page(render(make_run(plan={"clip_norm": 1.0}, history={"clip_scale": scales}))).says(told)


def test_metrics_on_training_data_stand_beside_those_on_validation_data(make_run):
    run = make_run(metrics={"loss": 0.1, "accuracy": 0.9}, summary={"training": {"loss": 0.02, "accuracy": 0.99}})
    page = Page(render(run))
    assert page.says("On the training data, in evaluation mode: accuracy 99 %, loss 0.02.")
    assert page.says("99 % on training data")


def test_measured_batch_sizes_stand_in_a_table_with_a_header(make_run):
    page = Page(render(make_run()))
    assert page.says(
        "batch size examples per second memory 32 ◆ 9,000 410 MB 64 14,000 411 MB 128 out of memory 900 MB"
    )


def test_memory_is_drawn_with_its_limit_and_told_by_its_parts(make_run):
    page = Page(render(make_run()))
    assert page.says(
        "Memory, measured in child processes: 200 MB (weights 100, gradients 100) for any batch, and 30 kB (activations 30) an"
        " example. 800 MB may be taken (what is free on this machine)."
    )
    figures = dict(make_run().plan.why("batch_size").figures)
    far = {**figures, "memory_limit_megabytes": 1e6}
    key = '<b>Memory</b><span class="legend"><span class="key train">needed</span><span class="key limit'
    assert key in render(make_run())
    assert key not in render(with_batches(make_run, far))


def with_lengths(make_run, **figures):
    return make_run(plan={"evidence": {"steps": Evidence("searched", "", figures)}})


def test_the_lengths_that_were_tried_are_drawn(make_run):
    found = {"lengths": [100, 200, 400], "costs": [0.5, 0.3, float("inf")], "projected_gain": 0.012}
    text = render(with_lengths(make_run, **found))
    assert "Length of the run" in charts(text)
    assert Page(text).says("One of more was projected to gain another 1.2%.")
    assert "chosen: 400 steps" in text  # the plan's
    for other in (
        {"lengths": [100], "costs": [0.5]},
        {"lengths": "many", "costs": [1, 2]},
        {"lengths": [1, "x"], "costs": [1, 2]},
    ):
        assert "Length of the run" not in charts(render(with_lengths(make_run, **other)))


def with_batches(make_run, figures):
    return make_run(plan={"evidence": {"batch_size": Evidence("measured", "", figures)}})


def test_throughput_is_drawn_and_the_noise_scale_told(make_run):
    text = render(make_run())
    assert "Throughput" in charts(text)
    assert Page(text).says("The gradient noise scale is 40 (30 to 60) examples after the first steps")
    bound = {"batch_sizes": [8, 16], "examples_per_second": [9, 9], "noise_scale_above": 700.0}
    assert Page(render(with_batches(make_run, bound))).says("noise scale is larger than 700 examples")


def test_a_size_that_failed_is_told_with_its_error(make_run):
    figures = {"batch_sizes": [8, 16, 32], "examples_per_second": [9, 0, 20], "failed": {"16": "shapes <b>differ"}}
    page = Page(render(with_batches(make_run, figures)))
    assert page.says("16 failed: shapes <b>differ.")
    assert page.says("16 failed 32")


@pytest.mark.parametrize(
    "figures",
    [
        {"batch_sizes": "many", "examples_per_second": 3},
        {"batch_sizes": [8, "x"], "examples_per_second": [1, 2], "megabytes": ["no"]},
        {"batch_sizes": [8, 16], "examples_per_second": [1, 2], "fixed_megabytes": 3, "noise_scale": [1], "failed": 1},
    ],
)
def test_figures_of_another_program_are_left_out_where_they_cannot_be_read(make_run, figures):
    render(with_batches(make_run, figures))


def test_a_memory_that_was_not_recorded_has_no_column(make_run):
    figures = {"batch_sizes": [32, 64], "examples_per_second": [9000, 14000]}
    page = Page(render(make_run(plan={"evidence": {"batch_size": Evidence("measured", "", figures)}})))
    assert page.says("batch size examples per second 32 ◆ 9,000 64 14,000")
    assert not page.says("MB")


def with_search_seconds(seconds):
    return {"evidence": {"learning_rate": Evidence("searched", "", {"seconds": seconds})}}


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (with_search_seconds(12.3), "time 3.4 s on the CPU; search 12 s"),
        (with_search_seconds(0.5), "time 3.4 s on the CPU; search 0.5 s"),
        ({}, "time 3.4 s on the CPU What to do next"),
    ],
)
def test_beside_the_time_of_training_stands_that_of_the_search(make_run, plan, words):
    assert Page(render(make_run(plan=plan))).says(words)


@pytest.mark.parametrize(
    ("trained", "words"),
    [
        (26_122, "parameters 26,122 training"),
        (1_290, "parameters 26,122, of which 1,290 are trained"),
        (None, "parameters 26,122 t"),
    ],
)
def test_parameters_that_are_not_trained_are_told_from_the_others(make_run, trained, words):
    assert Page(render(make_run(summary={"trainable_parameters": trained}))).says(words)


def test_a_run_without_a_limit_has_no_steps_shortened_to_it(make_run):
    limited, unlimited = (Page(render(make_run(plan={"clip_norm": limit}))) for limit in (10.0, None))
    assert limited.says("steps of 400 were shortened to the limit.")
    assert unlimited.says("No limit was set (clip_norm), so none was shortened.")
    assert not unlimited.says("to the limit")


def test_a_limit_that_a_rollback_set_is_one(rescued):
    run = replace(rescued, plan=rescued.plan.replace(clip_norm=None))
    assert Page(render(run)).says("of 400 were shortened to the limit.")


def test_charts_over_steps_have_epochs_too_where_they_are_known(make_run):
    text = render(make_run())
    assert text.count('<span class="x-name epoch">epoch</span>') == 5  # loss, accuracy, rate, gradient, temperature
    assert '"epoch"' not in render(make_run(plan={"steps_per_epoch": None}))


def test_one_measured_batch_size_is_no_chart(make_run):
    figures = {"batch_sizes": [32], "examples_per_second": [9000], "megabytes": [410]}
    run = make_run(plan={"evidence": {"batch_size": Evidence("measured", "", figures)}})
    assert "Batch size" not in charts(render(run))


def test_knobs_that_nobody_chose_are_folded_away_with_a_word_on_what_they_are(make_run):
    run = make_run(plan={"position": "state_dict"})
    text = render(run)
    folded = text[text.index("more knobs, which nobody had to choose") :]
    assert "how a resumed run finds its position in the data" in folded


def test_counts_of_steps_have_commas_wherever_they_come_from(make_run):
    page = Page(render(make_run(steps=3420, plan={"schedule": schedule.constant()})))
    assert page.says("constant over 3,420 steps")
    assert not page.says("over 3420")


def test_a_rate_that_cures_lowered_is_drawn_beside_the_planned_one(make_run):
    run = make_run()
    halved = np.where(run.history["step"] > 200, 0.5, 1.0)
    used = np.array([np.nan, *(0.003 * run.plan.schedule.resolve(400).factor(s) for s in range(400))])
    same, lowered = (
        replace(run, history=HistoryColumns({**run.history, "learning_rate": y})) for y in (used, used * halved)
    )
    assert "planned</span>" not in render(same)
    assert "planned</span>" in render(lowered)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("interrupted", "Interrupted at step 400 of 400."),
        ("diverged", "The descent was given up at step 400 of 400: it diverged."),
        ("failed", "An error ended the run at step 400 of 400."),
        ("running", "Not finished when this was written."),
    ],
)
def test_an_unfinished_run_says_so_and_how_to_go_on(make_run, keep, tmp_path, status, words):
    run = keep(make_run(summary={"status": status}), tmp_path / "run")
    page = Page(write_report(run).read_text("utf-8"))
    assert page.says(words)
    assert page.says("Resume where it stopped")


def test_a_run_that_has_not_taken_a_step_has_a_report(tmp_path):
    page = Page(render(Run(plan=Plan(), history=HistoryColumns(), summary={"status": "running", "name": "new"})))
    assert page.says("No step has been recorded yet.")


def test_a_run_of_one_step_has_a_report(make_run):
    assert "Loss" in charts(render(make_run(steps=1)))


def test_without_validation_the_loss_is_called_training_loss(make_run):
    page = Page(render(make_run(validation=False)))
    assert page.says("Evaluated training loss fell from 2.45 to 0.15")
    assert page.says("training, evaluated")
    assert not page.says("validation loss")


def test_a_loss_that_is_not_finite_is_marked_and_hides_nothing(make_run):
    losses = make_run().history["loss"].copy()
    losses[[50, 51, 200]] = [np.nan, np.inf, -np.inf]
    text = render(make_run(history={"loss": losses}))
    assert "</b> 3 not finite" in text
    loss = text[text.index("<b>Loss</b>") : text.index("<b>Accuracy</b>")]
    assert loss.count('class="lost"') == 3


def test_metrics_that_are_not_finite_are_told_as_they_are(make_run):
    page = Page(render(make_run(metrics={"loss": float("nan"), "accuracy": float("inf")})))
    assert page.says("validation loss ended not finite, after 2.45")


def test_a_spike_of_one_step_in_many_is_drawn_to_its_full_height(make_run):
    losses = make_run(steps=20_000).history["loss"].copy()
    losses[12_345] = 1e6
    text = render(make_run(steps=20_000, history={"loss": losses}))
    band = re.search(r'class="band" d="M\d+ (\d+)l([^"]*)z"', text)
    down = np.cumsum([int(band[1]), *map(int, band[2].split()[1::2])])
    other = render(make_run(steps=20_000))
    plain = re.search(r'class="band" d="M\d+ (\d+)l([^"]*)z"', other)
    usual = np.cumsum([int(plain[1]), *map(int, plain[2].split()[1::2])])
    assert down.min() < 700  # 10,000 is the bottom, 0 the top
    assert (down < 2000).sum() == 1
    assert usual.min() < 700


def test_two_hundred_thousand_steps_take_under_two_seconds_and_400_kilobytes(make_run, tmp_path):
    run = make_run(steps=200_000, ema=True)
    started = time.process_time()
    path = write_report(run, tmp_path / "report.html")
    assert time.process_time() - started < 2
    assert path.stat().st_size < 400_000


def test_hundreds_of_events_are_shown_in_part_and_counted(make_run):
    events = tuple(Event(s, "nonfinite", f"step {s}: left out", {}, 1, False) for s in range(1, 401))
    text = render(make_run(events=events))
    assert "and 200 more, in the history" in text
    assert text.count('class="mark nonfinite"') < 400


def test_the_read_out_has_the_values_that_are_drawn(make_run):
    run = make_run(steps=20)
    page = Page(render(run))
    loss = json.loads(next(d for d in page.data if '"training"' in d))
    assert [line["name"] for line in loss["lines"]] == ["training", "validation"]
    assert loss["lines"][0]["x"] == list(range(1, 21))
    np.testing.assert_allclose(loss["lines"][0]["y"], run.history["loss"][1:], rtol=1e-3)


def test_the_default_place_is_the_runs_folder(make_run, keep, tmp_path):
    run = keep(make_run(), tmp_path / "run")
    assert write_report(run) == tmp_path / "run" / "report.html"
    assert sorted(p.name for p in (tmp_path / "run").glob("*report*")) == ["report.html"]


def test_a_run_opened_from_its_folder_has_the_same_report(rescued, keep, tmp_path):
    opened = keep(rescued, tmp_path)
    assert render(replace(opened, folder=None, events=rescued.events)) == render(rescued)


def test_without_folder_or_path_the_error_says_what_to_give(make_run):
    with pytest.raises(RunError, match=r"thalweg\.report\(run, 'report\.html'\)"):
        write_report(make_run())


def test_where_the_disk_refuses_the_old_report_stays(make_run, tmp_path):
    place = tmp_path / "report.html"
    place.mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(RunError, match="is a folder"):
        write_report(make_run(), place)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_lone_surrogate_in_a_name_does_not_break_the_file(make_run, tmp_path):
    path = write_report(make_run(summary={"name": "a\ud800b"}), tmp_path / "r.html")
    assert "<h1>ab</h1>" in path.read_text("utf-8")


JUNK = [
    -1,
    "x",
    [],
    {},
    [["a"], {}],
    {"a": ["b"]},
    float("inf"),
    float("nan"),
    True,
    10**400,
    [10**400] * 6,
    [float("inf")] * 6,
]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: f"{type(junk).__name__} {str(junk)[:12]}")
def test_whatever_a_plans_evidence_holds_as_figures_the_run_is_told(make_run, junk):
    run = make_run()
    whole = {name: run.plan.why(name) for name in ("learning_rate", "batch_size")}
    open_length = dict.fromkeys(("projected_gain", "pays", "most", "seconds", "steps", "entered"), junk)
    for knob, why in whole.items():
        for name in why.figures:
            changed = Evidence(why.source, why.reason, {**why.figures, name: junk})
            others = {other: Evidence("searched", "", open_length) for other in ("steps", "groups")}
            plan = run.plan.replace(evidence={**whole, knob: changed, **others})
            told = replace(run, plan=plan)
            assert render(told)
            assert next_steps(told)
            print_summary(told)
