"""TensorBoard's event files: those that PyTorch's own writer wrote (`event_files/write.py`), and broken ones."""

import math
import shutil
import struct
from pathlib import Path

import pytest

import thalweg as tw
from thalweg.cli import main
from thalweg.watch.event_files import masked_sum, read_scalars
from thalweg.watch.foreign import is_foreign, read_history

WRITTEN = Path(__file__).parent / "event_files"
NAME = "events.out.tfevents.1.host.0.0"


def varint(value):
    out = bytearray()
    while True:
        out.append((value & 127) | (128 if value > 127 else 0))
        value >>= 7
        if not value:
            return bytes(out)


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value & (2**64 - 1))
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def record(data):
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked_sum(head)) + data + struct.pack("<I", masked_sum(data))


def event(step, **scalars):
    """An event as a writer of scalars makes it; a value of bytes is a whole field of a `Value`."""
    values = b"".join(
        field(
            1,
            field(1, tag.replace("__", "/").encode()) + (value if isinstance(value, bytes) else field(2, float(value))),
        )
        for tag, value in scalars.items()
    )
    return record(field(2, step) + field(5, values))


def tensor(dtype, *fields, shape=b""):
    return field(8, field(1, dtype) + field(2, shape) + b"".join(fields))


def write(path, *events):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(record(field(3, b"brain.Event:2")) + b"".join(events))
    return path


def losses(path):
    return read_history(path).columns["loss"].tolist()


@pytest.mark.parametrize("name", ["simple_value", "tensor", "double"])
def test_what_pytorch_wrote_is_read(name):
    single = name != "double"
    for path in (WRITTEN / name, WRITTEN / name / NAME):
        history = read_history(path)
        assert history.taken == {
            "step": "step",
            "loss": "train/loss",
            "learning_rate": "train/learning_rate",
            "validation/loss": "eval/loss",
        }
        assert history.columns["step"].tolist() == list(range(81))
        expected = [2 / (step + 1) for step in range(80)]
        assert history.columns["loss"][:80] == pytest.approx(expected, rel=1e-7 if single else 0)
        validated = history.columns["validation/loss"]
        assert [step for step in range(81) if not math.isnan(validated[step])] == [0, 20, 40, 60]
        assert history.notes == ()
    other = {one.tag: one.value for one in read_scalars(WRITTEN / name).scalars if one.step == 80}
    assert other["zero"] == 0.0
    assert math.isnan(other["lost"])


def test_curves_of_add_scalars_are_training_and_validation():
    history = read_history(WRITTEN / "add_scalars")
    assert history.taken == {"step": "step", "loss": "loss_train", "validation/loss": "loss_validation"}
    assert history.columns["validation/loss"] == pytest.approx([3 / step for step in range(1, 30)], rel=1e-6)


def test_losses_without_steps_are_numbered_in_their_order():
    history = read_history(WRITTEN / "without_steps")
    assert "step" not in history.taken
    assert history.columns["step"].tolist() == list(range(1, 30))
    assert history.columns["loss"] == pytest.approx([2 / step for step in range(1, 30)], rel=1e-6)


def test_what_keras_writes_is_one_run(tmp_path):
    value = lambda number: tensor(1, field(4, struct.pack("<f", number)))  # noqa: E731
    write(
        tmp_path / "train" / NAME,
        *[event(k, epoch_loss=value(2.0 - k / 10), epoch_learning_rate=value(0.1)) for k in range(9)],
    )
    write(tmp_path / "validation" / NAME, *[event(k, epoch_loss=value(3.0)) for k in range(9)])
    history = read_history(tmp_path)
    assert history.taken == {
        "step": "step",
        "loss": "epoch_loss",
        "learning_rate": "epoch_learning_rate",
        "validation/loss": "val_loss",
    }
    assert history.columns["loss"] == pytest.approx([2.0 - k / 10 for k in range(9)])
    assert history.columns["validation/loss"].tolist() == [3.0] * 9


def test_a_rate_with_the_optimisers_name_behind_it_is_the_rate(tmp_path):
    path = write(tmp_path / NAME, *[event(k, train_loss_step=1.0, lr_AdamW__pg1=0.1) for k in range(3)])
    assert read_history(path).taken["learning_rate"] == "lr_AdamW/pg1"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (tensor(1, field(5, struct.pack("<f", 1.5))), 1.5),
        (tensor(2, field(6, struct.pack("<d", 1.1))), 1.1),
        (tensor(2, field(4, struct.pack("<d", 1.1))), 1.1),
        (tensor(19, field(4, struct.pack("<e", 1.5))), 1.5),
        (tensor(3, field(7, varint(7))), 7.0),
        (tensor(3, field(4, struct.pack("<i", -7))), -7.0),
        (tensor(9, field(10, -3)), -3.0),
        (tensor(1), 0.0),
        (tensor(1, field(4, struct.pack("<2f", 1, 2)), shape=field(2, field(1, 2))), None),
        (tensor(7, field(8, b"text")), None),
        (field(5, b"a histogram"), None),
    ],
)
def test_tensors_of_one_number_are_scalars(tmp_path, value, expected):
    scalars = read_scalars(write(tmp_path / NAME, event(-5 & (2**64 - 1), loss=value))).scalars
    assert [one.value for one in scalars] == ([] if expected is None else [expected])
    assert all(one.step == -5 for one in scalars)


def test_a_training_that_was_continued_in_a_second_file_goes_on_there(tmp_path):
    write(tmp_path / "events.out.tfevents.1.a", *[event(k, loss=1.0) for k in range(10)])
    write(tmp_path / "events.out.tfevents.2.a", *[event(k, loss=2.0) for k in range(6, 12)])
    assert losses(tmp_path) == [1.0] * 6 + [2.0] * 6


def test_two_writers_of_one_training_are_put_together(tmp_path):
    write(tmp_path / "events.out.tfevents.1.a", *[event(k, loss=1.0) for k in range(10)])
    write(tmp_path / "events.out.tfevents.1.b", *[event(k, val_loss=2.0) for k in range(0, 10, 3)])
    (tmp_path / "events.out.tfevents.2.a").touch()
    history = read_history(tmp_path)
    assert history.columns["loss"].tolist() == [1.0] * 10
    assert [k for k in range(10) if history.columns["validation/loss"][k] == 2.0] == [0, 3, 6, 9]


def test_other_folders_of_a_run_are_not_the_runs(tmp_path):
    write(tmp_path / NAME, *[event(k, loss=1.0) for k in range(3)])
    write(tmp_path / "1700000000.5" / NAME, event(0, hparam__loss=9.0, loss=9.0))
    assert losses(tmp_path) == [1.0] * 3


def test_a_folder_of_several_runs_is_refused_and_they_are_named(tmp_path):
    for name in ("first", "second"):
        write(tmp_path / name / NAME, event(0, loss=1.0))
    with pytest.raises(
        tw.RunError, match=r"event files only in folders below it: first, second\. Give the folder of one"
    ):
        tw.diagnose(tmp_path)


def test_a_file_that_is_cut_off_is_read_up_to_there_and_that_is_said(tmp_path, capsys):
    whole = (WRITTEN / "simple_value" / NAME).read_bytes()
    path = tmp_path / NAME
    path.write_bytes(whole[:8000])
    history = read_history(path)
    assert 30 < len(history.columns["loss"]) < 80
    (note,) = history.notes
    place = int(note.split("byte ")[1].split(", and")[0].replace(",", ""))
    assert 7900 < place <= 8000
    assert main(["diagnose", str(path)]) in (0, 10, 11)
    assert f"{note}." in capsys.readouterr().out


@pytest.mark.parametrize("cut", range(1, 80, 7))
def test_wherever_it_is_cut_there_is_one_error_or_a_note(tmp_path, cut):
    path = write(tmp_path / NAME, *[event(k, loss=1.0) for k in range(3)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - cut])
    assert NAME in " ".join(said_of(path))


def said_of(path):
    try:
        return read_history(path).notes
    except tw.RunError as error:
        return [str(error)]


@pytest.mark.parametrize("at", [4000, 4001, 4002, 4003, 4010, 4020, 4030])
def test_a_flipped_byte_is_found_and_its_record_named(tmp_path, at):
    data = bytearray((WRITTEN / "simple_value" / NAME).read_bytes())
    data[at] ^= 8
    path = tmp_path / NAME
    path.write_bytes(data)
    with pytest.raises(tw.RunError, match=r"the record at byte [34],\d+ does not agree with its checksum.*head -c \d+"):
        tw.diagnose(path)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty: nothing was logged"),
        (b"step,loss\n1,2.0\n2,1.9\n", "is no event file of TensorBoard's"),
        (b"\0" * 64, "is no event file of TensorBoard's"),
        (b"short", "is cut off in its first record, or no event file"),
        (record(b"\xff" * 20), r"the record at byte 0 is damaged, or no event of TensorBoard's"),
        (record(field(3, b"brain.Event:2")), "has no column of the training loss: its columns are none"),
        (record(field(5, field(1, field(1, b"\xff\xfe") + field(2, 1.0)))), "the record at byte 0 is damaged"),
    ],
)
def test_what_is_no_event_file_is_one_error(tmp_path, data, told):
    path = tmp_path / NAME
    path.write_bytes(data)
    with pytest.raises(tw.RunError, match=told):
        tw.diagnose(path)


def test_a_large_record_with_a_scalar_is_held_to_its_checksum(tmp_path):
    image = field(5, field(1, field(1, b"picture") + field(4, b"\7" * 100_000)))
    both = field(2, 1) + image + field(5, field(1, field(1, b"loss") + field(2, 1.0)))
    path = write(tmp_path / NAME, record(both), event(2, loss=1.0))
    assert losses(path) == [1.0, 1.0]
    data = bytearray(path.read_bytes())
    data[50_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(tw.RunError, match="does not agree with its checksum"):
        read_history(path)


def test_a_divergence_is_named_once_at_its_step(tmp_path):
    curve = [2.3 * math.exp(-k / 50) if k < 100 else 0.3 * math.exp((k - 100) / 5) for k in range(200)]
    path = write(tmp_path / NAME, *[event(10 * k, train__loss=value) for k, value in enumerate(curve)])
    found = [each for each in tw.diagnose(path) if each.symptom == "diverging"]
    assert len(found) == 1
    assert 1000 < found[0].step < 1400
    assert main(["diagnose", str(path)]) == 11


def test_a_runs_own_folder_is_a_run_whatever_else_lies_in_it(tmp_path):
    task = tw.Task(tw_model, torch_loss, data=data())
    run = tw.train(task, tw.Plan(learning_rate=0.01, batch_size=8), steps=5, out=tmp_path / "run")
    shutil.copy(WRITTEN / "tensor" / NAME, run.folder / NAME)
    assert not is_foreign(run.folder)
    assert is_foreign(WRITTEN / "tensor")
    assert not is_foreign(tmp_path / "nothing")


def tw_model():
    import torch

    return torch.nn.Linear(2, 1)


def torch_loss(output, target):
    return (output - target).square().mean()


def data():
    import torch

    return torch.randn(32, 2), torch.randn(32, 1)
