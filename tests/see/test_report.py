"""The report tells the run, in one file that loads and runs nothing else."""

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from thalweg.errors import RunError
from thalweg.records.history import Event
from thalweg.records.plan import Plan
from thalweg.records.run import Figures, Run
from thalweg.see.report import render, write_report

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
    expected = ["Loss", "Accuracy", "Learning rate", "Gradient norm", "Learning-rate search", "Batch size"]
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
    assert "steps 100 to 120 were walked anew" in text
    assert 'class="mark rollback"' in text
    assert page.says("Went back from step 120 to step 100.")
    assert page.says("diverging at step 120, abnormal since step 112 (90% sure)")
    assert page.says("9.1 (threshold 4.2)")
    assert page.says("Cure: Go back, halve the rate and clip at 1. It was seen to work.")


def test_a_rate_that_cures_lowered_is_drawn_beside_the_planned_one(make_run):
    run = make_run()
    halved = np.where(run.history["step"] > 200, 0.5, 1.0)
    used = np.array([np.nan, *(0.003 * run.plan.schedule.resolve(400).factor(s) for s in range(400))])
    same, lowered = (replace(run, history=Figures({**run.history, "learning_rate": y})) for y in (used, used * halved))
    assert "planned</span>" not in render(same)
    assert "planned</span>" in render(lowered)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("interrupted", "Interrupted at step 400 of 400."),
        ("diverged", "The descent was given up at step 400 of 400: it diverged."),
        ("failed", "Something else failed at step 400 of 400."),
        ("running", "Not finished when this was written."),
    ],
)
def test_an_unfinished_run_says_so_and_how_to_go_on(make_run, keep, tmp_path, status, words):
    run = keep(make_run(summary={"status": status}), tmp_path / "run")
    page = Page(write_report(run).read_text("utf-8"))
    assert page.says(words)
    assert page.says("Go on where it stopped")


def test_a_run_that_has_not_taken_a_step_has_a_report(tmp_path):
    page = Page(render(Run(plan=Plan(), history=Figures(), summary={"status": "running", "name": "new"})))
    assert page.says("No step has been recorded yet.")


def test_a_run_of_one_step_has_a_report(make_run):
    assert "Loss" in charts(render(make_run(steps=1)))


def test_without_validation_the_loss_is_called_training_loss(make_run):
    page = Page(render(make_run(validation=False)))
    assert page.says("Training loss fell from 2.45 to 0.15")
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
    with pytest.raises(RunError, match="cannot be written"):
        write_report(make_run(), place)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_lone_surrogate_in_a_name_does_not_break_the_file(make_run, tmp_path):
    path = write_report(make_run(summary={"name": "a\ud800b"}), tmp_path / "r.html")
    assert "<h1>ab</h1>" in path.read_text("utf-8")
