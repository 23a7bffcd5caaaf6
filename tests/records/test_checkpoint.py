import errno
import hashlib
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import KINDS, contents, plant

from thalweg.errors import CheckpointError
from thalweg.records import checkpoint, tensor_sections, tensorfile
from thalweg.records.checkpoint import MANIFEST, load, newest, save, steps, verify

COMMON = [*tensorfile.DTYPES.values(), torch.complex32, torch.complex64, torch.complex128]


def small(step=1):
    weight = torch.full((3, 4), float(step))
    return {
        "model": {"embed": weight, "head": weight, "count": torch.tensor(step)},
        "optimizer": {"state": {0: {"exp_avg": weight / 2, "step": torch.tensor(float(step))}}},
        "loop": {"step": step, "best": math.inf},
    }


def same(one, other):
    """Equal in structure, types and bits."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and raw(one) == raw(other)
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and [*one] == [*other] and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


def raw(tensor):
    whole = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(whole.view(torch.uint8).numpy()) if len(whole) else b""


@st.composite
def tensors(draw):
    dtype, shape = draw(st.sampled_from(COMMON)), draw(st.lists(st.integers(0, 3), max_size=3))
    count = math.prod(shape) * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=count, max_size=count)))
    if dtype is torch.bool:
        data = bytearray(byte % 2 for byte in data)
    tensor = torch.frombuffer(data, dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    return tensor.transpose(0, -1) if tensor.dim() > 1 and draw(st.booleans()) else tensor


LEAVES = tensors() | st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
KEYS = (
    st.text(st.characters(), max_size=5) | st.integers(-3, 3) | st.sampled_from(["a/b", "~tensor", "__metadata__", "0"])
)
NESTED = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
)
STATES = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), NESTED, max_size=3)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(STATES)
def test_a_state_comes_back_bit_for_bit(tmp_path, state):
    save(tmp_path, state, step=1)
    assert same(load(tmp_path).state, state)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", COMMON, ids=str)
def test_each_dtype_comes_back(tmp_path, dtype):
    values = torch.arange(6).to(dtype) if dtype is not torch.complex32 else torch.arange(6).to(torch.cfloat).to(dtype)
    state = {
        "m": {"w": values.reshape(2, 3), "scalar": values[1], "none": values[:0], "turned": values.reshape(2, 3).t()}
    }
    save(tmp_path, state, step=1)
    assert same(load(tmp_path).state, state)


def test_a_model_with_its_optimizer_goes_on_with_the_same_bits(tmp_path):
    def fresh():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(), torch.nn.Linear(8, 1)
        )
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def descend(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.randn(6, 4)).square().mean().backward()
            optimizer.step()

    before = torch.get_rng_state()
    try:
        model, optimizer = fresh()
        descend(model, optimizer, 3)
        optimizer_state = optimizer.state_dict()
        for group in optimizer_state["param_groups"]:
            group["betas"] = list(group["betas"])
        save(
            tmp_path,
            {"model": model.state_dict(), "optimizer": optimizer_state, "rng": {"cpu": torch.get_rng_state()}},
            step=3,
        )
        descend(model, optimizer, 3)

        again, other = fresh()
        state = load(tmp_path).state
        again.load_state_dict(state["model"])
        other.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"]["cpu"])
        descend(again, other, 3)
    finally:
        torch.set_rng_state(before)
    assert same(dict(again.state_dict()), dict(model.state_dict()))


def test_tied_tensors_are_written_once_and_tied_again(tmp_path):
    path = save(tmp_path, small(), step=1)
    state = load(path).state
    assert state["model"]["embed"] is state["model"]["head"]
    assert json.loads((path / MANIFEST).read_text())["aliases"] == {"model/head": "model/embed"}
    assert (path / "model.safetensors").stat().st_size < 3 * 4 * 4 * 2 + 200


def test_parameters_come_back_as_tensors_without_gradient_and_the_state_is_left_alone(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    save(tmp_path, {"model": {"w": parameter}}, step=1)
    assert parameter.requires_grad
    back = load(tmp_path).state["model"]["w"]
    assert type(back) is torch.Tensor
    assert not back.requires_grad


def test_other_programs_read_the_files(tmp_path):
    path = save(tmp_path, small(7), step=7)
    assert sorted(os.listdir(path)) == [MANIFEST, "loop.json", "model.safetensors", "optimizer.safetensors"]
    assert set(safetensors.torch.load_file(path / "optimizer.safetensors")) == {"state/0/exp_avg", "state/0/step"}
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["step"] == 7
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    unset = (path / MANIFEST).read_bytes().replace(manifest["sum"].encode(), b"0" * 64)
    assert hashlib.sha256(unset).hexdigest() == manifest["sum"]


# Which are kept


def test_the_newest_are_kept_and_best_always(tmp_path):
    save(tmp_path, small(1), step=1, name="best")
    for step in (1, 5, 30, 200):
        assert save(tmp_path, small(step), step=step, keep=2) == tmp_path / f"step-{step:08d}"
    assert sorted(os.listdir(tmp_path)) == ["best", "step-00000030", "step-00000200"]
    assert steps(tmp_path) == [30, 200]
    assert newest(tmp_path) == tmp_path / "step-00000200"
    assert load(tmp_path / "best").step == 1


def test_a_damaged_one_does_not_count_among_those_kept(tmp_path):
    for step in (1, 2):
        save(tmp_path, small(step), step=step)
    flip(tmp_path / "step-00000002" / "model.safetensors", 100)
    checkpoint._intact.clear()  # as in the process that resumes
    save(tmp_path, small(3), step=3, keep=2)
    assert steps(tmp_path) == [1, 2, 3]
    save(tmp_path, small(4), step=4, keep=2)
    assert steps(tmp_path) == [3, 4]


def test_a_save_reads_none_of_those_this_process_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "check", lambda path, expected: pytest.fail(f"{path} was read"))
    for step in (1, 2, 3):
        save(tmp_path, small(step), step=step, keep=2)


def test_steps_of_a_course_that_was_left_are_dropped(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, small(step), step=step, keep=3)
    save(tmp_path, small(15), step=15, keep=3)
    assert steps(tmp_path) == [10, 15]


@pytest.mark.parametrize("swap", [True, False])
def test_a_name_is_replaced_by_the_new_one(tmp_path, monkeypatch, swap):
    if not swap:
        monkeypatch.setattr(checkpoint, "_swap_names", lambda one, other: False)
    for step in (1, 2):
        save(tmp_path, small(step), step=step, name="best")
        save(tmp_path, {"model": {"w": torch.ones(step)}}, step=5)
    assert sorted(os.listdir(tmp_path)) == ["best", "step-00000005"]
    assert load(tmp_path / "best").step == 2
    assert load(tmp_path).state["model"]["w"].tolist() == [1, 1]


# What is damaged


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    save(folder, small(1), step=1)
    return save(folder, small(2), step=2)


FILES = [MANIFEST, "loop.json", "model.safetensors", "optimizer.safetensors"]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_in_any_file_is_found_and_passed_over(intact, name, data):
    file = intact / name
    before = file.read_bytes()
    flip(file, data.draw(st.integers(0, 8 * len(before) - 1)))
    try:
        assert verify(intact)
        with pytest.raises(CheckpointError, match=r"step-00000002.*altered"):
            load(intact)
        loaded = load(intact.parent)
    finally:
        file.write_bytes(before)
    assert loaded.step == 1
    assert same(loaded.state, small(1))
    assert len(loaded.messages) == 1
    assert "step-00000002" in loaded.messages[0]
    assert "Continuing from step-00000001" in loaded.messages[0]
    assert verify(intact) == []


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.heavy)])
def test_every_single_bit_of_the_manifest_counts(intact, stride):
    file = intact / MANIFEST
    before = file.read_bytes()
    try:
        for bit in range(0, 8 * len(before), stride):
            flip(file, bit)
            assert verify(intact), bit
            file.write_bytes(before)
    finally:
        file.write_bytes(before)


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def grow(file):
    file.write_bytes(file.read_bytes() + b"\0")


def empty(file):
    file.write_bytes(b"")


def become_folder(file):
    file.unlink()
    file.mkdir()


def become_pipe(file):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    "damage", [Path.unlink, cut, grow, empty, become_folder, become_pipe], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", FILES)
def test_a_file_missing_or_of_another_length_or_kind_is_passed_over(tmp_path, name, damage):
    for step in (1, 2):
        save(tmp_path, small(step), step=step)
    damage(tmp_path / "step-00000002" / name)
    loaded = load(tmp_path)
    assert (loaded.step, len(loaded.messages)) == (1, 1)
    assert name in loaded.messages[0]
    assert newest(tmp_path) == tmp_path / "step-00000001"


def test_a_torn_folder_is_no_checkpoint_and_goes_with_the_next(tmp_path):
    save(tmp_path, small(1), step=1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".tmp-step-00000002")
    (tmp_path / "step-00000003").mkdir()
    assert load(tmp_path).step == 1
    save(tmp_path, small(2), step=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000001", "step-00000002"]


def test_two_files_that_changed_places_are_found(intact):
    one, other = intact / "model.safetensors", intact / "optimizer.safetensors"
    kept = one.read_bytes(), other.read_bytes()
    try:
        one.write_bytes(kept[1])
        other.write_bytes(kept[0])
        assert len(verify(intact)) == 2
    finally:
        one.write_bytes(kept[0])
        other.write_bytes(kept[1])


def test_a_folder_under_another_step_is_not_believed(tmp_path):
    save(tmp_path, small(1), step=1).rename(tmp_path / "step-00000009")
    with pytest.raises(CheckpointError, match="holds step 1"):
        load(tmp_path)


def test_a_whole_checkpoint_in_anothers_place_is_not_believed(tmp_path):
    save(tmp_path, small(1), step=1, name="best")
    save(tmp_path, small(2), step=2)
    (tmp_path / "best").rename(tmp_path / "aside")
    (tmp_path / "step-00000002").rename(tmp_path / "best")
    (tmp_path / "aside").rename(tmp_path / "step-00000001")
    for name, was in (("best", "step-00000002"), ("step-00000001", "best")):
        with pytest.raises(CheckpointError, match=f"{name} was written as {was}: the folder was renamed"):
            load(tmp_path / name)
        assert verify(tmp_path / name)
    assert newest(tmp_path) is None


def test_where_none_is_intact_it_says_what_is_wrong_and_that_best_is(tmp_path):
    save(tmp_path, small(1), step=1, name="best")
    for step in (1, 2):
        cut(save(tmp_path, small(step), step=step) / "loop.json")
    with pytest.raises(CheckpointError, match=r"step-00000002.*loop.json.*step-00000001.*loop.json.*best is intact"):
        load(tmp_path)
    assert newest(tmp_path) is None


@pytest.mark.parametrize("where", [".", "nowhere", "best", "step-00000001"])
def test_where_there_is_none_it_says_so(tmp_path, where):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(tmp_path / where)
    assert steps(tmp_path / where) == []


def resum(path: Path, change) -> None:
    """Write a manifest with true sums after a change, as somebody would who means harm or is of another version."""
    manifest = json.loads((path / MANIFEST).read_text())
    for name in manifest["files"]:
        data = (path / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(manifest)
    manifest["sum"] = "0" * 64
    text = json.dumps(manifest)
    (path / MANIFEST).write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()))


def test_a_newer_format_is_refused_and_not_passed_over(tmp_path):
    save(tmp_path, small(1), step=1)
    resum(save(tmp_path, small(2), step=2), lambda manifest: manifest.update(format=2))
    with pytest.raises(CheckpointError, match="install a newer"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../../evil.safetensors", "/etc/passwd", "model.pt", "sub/model.safetensors"])
def test_a_manifest_may_not_name_other_files(tmp_path, name):
    path = save(tmp_path, small(), step=1)
    resum(path, lambda manifest: manifest["files"].update({name: manifest["files"]["loop.json"]}))
    with pytest.raises(CheckpointError, match="names files that no checkpoint has"):
        load(path)


@pytest.mark.parametrize(
    "text",
    ['{"model": {"w": {"~tensor": "model/none"}}}', "[]", '{"a": {"~x": 1}}', '{"a": {"~int": 1}}', "[" * 10_000, "{"],
)
def test_a_true_sum_over_nonsense_is_still_refused(tmp_path, text):
    path = save(tmp_path, small(), step=1)
    (path / "loop.json").write_text(text)
    resum(path, lambda manifest: None)
    with pytest.raises(CheckpointError, match=r"loop\.json does not fit"):
        load(path)


class Trap:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("resummed", [False, True])
@pytest.mark.parametrize("name", [*FILES, "model.pt", "rng.pkl", ".metadata", "data.pkl"])
def test_a_pickle_planted_under_any_name_is_never_run(tmp_path, name, resummed, protocol):
    mark, path = tmp_path / "ran", save(tmp_path / "c", small(), step=1)
    (path / name).write_bytes(pickle.dumps(Trap(mark), protocol))
    if resummed and name != MANIFEST:
        resum(path, lambda manifest: None)
    verify(path)
    if name in FILES:
        with pytest.raises(CheckpointError):
            load(tmp_path / "c")
    else:
        load(tmp_path / "c")
    assert not mark.exists()


def test_a_torch_archive_with_a_pickle_in_place_of_the_weights_is_never_run(tmp_path):
    mark, path = tmp_path / "ran", save(tmp_path / "c", small(), step=1)
    torch.save(Trap(mark), path / "model.safetensors")
    resum(path, lambda manifest: None)
    with pytest.raises(CheckpointError):
        load(path)
    assert not mark.exists()


# What cannot be written


def failing(code, at):
    left = at

    def fsync(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(code, os.strerror(code))

    return fsync


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("name", [None, "best"])
def test_a_full_disk_at_any_file_leaves_the_older_ones_and_nothing_else(tmp_path, monkeypatch, at, name):
    save(tmp_path, small(1), step=1, keep=1)
    save(tmp_path, small(1), step=1, name="best")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC, at))
    if at < 5:  # four files and their folder; the sync after the move comes when the new one already stands
        with pytest.raises(CheckpointError, match=r"No space left.*Free about.*older checkpoints there are intact"):
            save(tmp_path, small(2), step=2, keep=1, name=name)
        assert sorted(os.listdir(tmp_path)) == ["best", "step-00000001"]
        assert load(tmp_path).step == load(tmp_path / "best").step == 1
    else:
        with pytest.raises(CheckpointError, match="No space left"):
            save(tmp_path, small(2), step=2, keep=1, name=name)
        assert load(tmp_path / (name or ".")).step == 2
        assert steps(tmp_path)[0] == 1


def test_a_file_that_cannot_grow_leaves_the_older_ones_and_nothing_else(tmp_path):
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    save(tmp_path, small(1), step=1)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            save(tmp_path, {"model": {"w": torch.zeros(1 << 20)}}, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_ctrl_c_while_writing_leaves_nothing_half_done(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    save(tmp_path, small(1), step=1)
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, small(2), step=2)
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_a_move_that_fails_half_way_puts_the_old_one_back(tmp_path, monkeypatch):
    save(tmp_path, small(1), step=1, name="best")
    monkeypatch.setattr(checkpoint, "_swap_names", lambda one, other: False)
    rename = os.rename

    def refuse(source, target):
        if Path(source).name.startswith(".tmp-"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(CheckpointError, match="Check the disk"):
        save(tmp_path, small(2), step=2, name="best")
    assert os.listdir(tmp_path) == ["best"]
    assert load(tmp_path / "best").step == 1


def test_a_file_where_the_folder_should_be_is_kept_aside(tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be listed"):
        load(tmp_path / "c")
    save(tmp_path / "c", small(), step=1)
    assert load(tmp_path / "c").step == 1
    assert (tmp_path / "c.set-aside").read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="pipes and sockets as they are on Linux")
@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_somebody_else_put_among_the_checkpoints_is_kept_and_saves_go_on(tmp_path, monkeypatch, kind, swap):
    if not swap:
        monkeypatch.setattr(checkpoint, "_swap_names", lambda one, other: False)
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    folder.mkdir()
    names = ["best", "step-00000002", "step-00000009", ".tmp-best", ".old-best", "notes"]
    for name in names:
        plant(folder / name, kind, elsewhere)
    planted = {path.lstat().st_ino for path in folder.iterdir()}
    for step in (1, 2, 3):
        save(folder, small(step), step=step, keep=1)
        save(folder, small(step), step=step, name="best")
    assert load(folder / "best").step == load(folder).step == 3
    assert contents(elsewhere) == {Path("precious"): b"mine"}
    left = {path.lstat().st_ino: path for path in folder.iterdir()}
    assert planted <= left.keys()
    assert {path.name for number, path in left.items() if number not in planted} == {"best", "step-00000003"}
    mine = [content for path, content in contents(folder).items() if path.parts[0] not in ("best", "step-00000003")]
    assert mine.count(b"mine") == (len(names) if kind in ("file", "folder", "link to file") else 0)


@pytest.mark.parametrize("kind", ["link to folder", "dangling link", "pipe"])
def test_a_link_in_place_of_the_folder_of_checkpoints_is_not_followed(tmp_path, kind):
    plant(tmp_path / "c", kind, tmp_path / "elsewhere")
    save(tmp_path / "c", small(), step=1)
    assert load(tmp_path / "c").step == 1
    assert contents(tmp_path / "elsewhere") == {Path("precious"): b"mine"}


def test_a_file_of_the_persons_in_a_checkpoint_outlives_it(tmp_path):
    save(tmp_path, small(1), step=1)
    (tmp_path / "step-00000001" / "notes.txt").write_text("mine")
    for step in (2, 3, 4):
        save(tmp_path, small(step), step=step, keep=1)
    assert sorted(os.listdir(tmp_path)) == ["step-00000001.set-aside", "step-00000004"]
    assert os.listdir(tmp_path / "step-00000001.set-aside") == ["notes.txt"]


@pytest.mark.parametrize(
    "bad", [{"step": -1}, {"step": 1, "keep": 0}, *({"step": 1, "name": n} for n in ("step-1", "../x", "", "A"))]
)
def test_what_cannot_be_a_checkpoint_is_refused_before_anything_is_written(tmp_path, bad):
    with pytest.raises(CheckpointError):
        save(tmp_path / "c", small(), **bad)
    with pytest.raises(CheckpointError, match="model/w is a tuple"):
        save(tmp_path / "c", {"model": {"w": (1,)}}, step=1)
    assert not (tmp_path / "c").exists()


# What a killed process leaves


def mortal(what, folder):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mortal.py")), what, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("how", ["checkpoint", "checkpoint-aside"])
def test_a_save_killed_at_any_file_operation_leaves_the_old_or_the_new_one(tmp_path, how):
    deaths = int(mortal(how, tmp_path).split()[0])
    assert deaths > 30


def test_what_was_moved_aside_when_the_process_died_still_counts(tmp_path):
    for name in (None, "best"):
        path = save(tmp_path, small(1), step=1, name=name)
        path.rename(tmp_path / f".old-{path.name}")
    assert load(tmp_path).step == load(tmp_path / "best").step == load(tmp_path / "step-00000001").step == 1
    assert verify(tmp_path / "best") == []
    save(tmp_path, small(2), step=2)
    assert sorted(os.listdir(tmp_path)) == ["best", "step-00000001", "step-00000002"]


def test_a_state_taken_apart_shares_its_memory_until_it_is_written():
    weight = torch.randn(100)
    assert tensor_sections.split({"m": {"w": weight}}).tensors["m"]["w"].data_ptr() == weight.data_ptr()
