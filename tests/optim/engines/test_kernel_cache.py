"""The kernel cache: kernels come back in later processes, and whatever else lies in the folder costs speed only."""

import os
import subprocess
import sys

import pytest
import torch

from thalweg.optim import Optimizer
from thalweg.optim.engines import kernel_cache, kernels
from thalweg.optim.engines.kernel_cache import identity

SCRIPT = """
import sys, torch, thalweg as tw
w = torch.ones(1000, requires_grad=True)
o = tw.optim.AdamW([w], lr=0.1, clip_norm=1.0, ema=0.9, engine='cpu')
w.grad = torch.ones_like(w)
o.step()
print('numba' in sys.modules, w.sum().item(), 'torch._dynamo' in sys.modules)
"""

CODE = b"code"
WHOLE = kernel_cache._sum(identity("text"), b"symbol\nsqrt\n" + CODE) + b"symbol\nsqrt\n" + CODE


def in_a_process(cache):
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=100
    )
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = kernel_cache.cache_folder()
    assert found is not None
    return found


@pytest.fixture
def linked(monkeypatch):
    """What would have been linked into the process and called: `load` gives 1 in its place."""
    found = []
    monkeypatch.setattr(kernel_cache, "_link", lambda symbol, calls, code: found.append((symbol, calls, code)) or 1)
    return found


def stepped(rule):
    w = torch.linspace(-1, 1, 500)
    optimizer = Optimizer([w], rule, lr=0.1, engine="cpu")
    for power in range(3):
        w.grad = torch.sin(w) * 10**power
        optimizer.step()
    return w


@pytest.mark.heavy
def test_a_second_process_finds_the_compiled_kernels_and_loads_no_compiler(tmp_path):
    compiled, moved, _ = in_a_process(tmp_path)
    assert compiled == "True"
    assert in_a_process(tmp_path) == ["False", moved, "False"]
    folder = tmp_path / "thalweg" / "kernels"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(list(folder.glob("adamw_float32_*.kernel"))) == 1


def test_a_whole_kernel_under_another_ones_name_is_not_run(folder, no_kernels):
    right = stepped("lion")
    stepped("gradient_descent")
    (lion,), (descent,) = (folder.glob(f"{rule}_float32_*.kernel") for rule in ("lion", "gradient_descent"))
    mine = lion.read_bytes()
    lion.write_bytes(descent.read_bytes())
    kernels._loaded.clear()
    kernels._for_switches.cache_clear()
    assert torch.equal(stepped("lion"), right)
    assert len(lion.read_bytes()) == len(mine)  # compiled anew, and saved in the place of the other


def test_a_kernel_belongs_to_its_text_options_processor_and_versions(folder, linked, monkeypatch):
    kernel_cache.save("some", identity("text"), "symbol", CODE, ["sqrt"])
    assert kernel_cache.load("some", identity("text")) == 1
    assert linked == [("symbol", ["sqrt"], CODE)]
    others = [identity("another text"), identity("text", "float64"), identity("text", "float32", "nnan")]
    for name, value in {"NUMBA_OPT": "0", "NUMBA_CPU_FEATURES": "-avx2"}.items():
        kernel_cache._surroundings.cache_clear()
        with monkeypatch.context() as context:
            context.setenv(name, value)
            others.append(identity("text"))
    kernel_cache._surroundings.cache_clear()
    for part, value in {"version": "0", "pkgutil.get_data": b""}.items():
        with monkeypatch.context() as context:
            context.setattr(f"{kernel_cache.__name__}.{part}", lambda *_, value=value: value)
            others.append(identity("text"))
        kernel_cache._surroundings.cache_clear()
    assert len({identity("text"), *others}) == 1 + len(others)
    assert [kernel_cache.load("some", other) for other in others] == [None] * len(others)


def test_a_file_cut_short_or_with_a_flipped_bit_is_no_kernel(folder, linked):
    damaged = [WHOLE[:length] for length in range(len(WHOLE))]
    damaged += [WHOLE[:i] + bytes([WHOLE[i] ^ 1]) + WHOLE[i + 1 :] for i in range(len(WHOLE))]
    for data in (*damaged, WHOLE + b"more"):
        (folder / "some.kernel").write_bytes(data)
        assert kernel_cache.load("some", identity("text")) is None
    (folder / "some.kernel").write_bytes(WHOLE)
    assert kernel_cache.load("some", identity("text")) == 1


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "open to others", "huge", "another user's"])
def test_what_is_no_plain_file_of_this_user_is_no_kernel_and_does_not_block(
    what, folder, linked, tmp_path, monkeypatch
):
    elsewhere, file = tmp_path / "elsewhere", folder / "some.kernel"
    elsewhere.write_bytes(WHOLE)
    if what == "link":
        file.symlink_to(elsewhere)
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    else:
        file.write_bytes(WHOLE)
    if what == "open to others":
        file.chmod(0o666)
    elif what == "huge":
        os.truncate(file, kernel_cache.MOST_BYTES + 1)
    elif what == "another user's":
        monkeypatch.setattr(os, "fstat", lambda handle: os.stat_result((0o100600, 0, 0, 1, os.getuid() + 1, *[0] * 5)))
    assert kernel_cache.load("some", identity("text")) is None
    kernel_cache.save("some", identity("text"), "symbol", CODE, ["sqrt"])
    monkeypatch.undo() if what == "another user's" else None
    assert elsewhere.read_bytes() == WHOLE
    assert [path.name for path in folder.iterdir()] == ["some.kernel"]  # no temporary file is left


def test_to_save_writes_into_no_file_that_is_there(folder, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder / f"some.{os.getpid()}.tmp").symlink_to(victim)
    kernel_cache.save("some", identity("text"), "symbol", CODE, [])
    assert victim.read_text() == "mine"
    assert (folder / "some.kernel").stat().st_mode & 0o777 == 0o600


def test_a_writer_that_is_overtaken_by_another_leaves_a_whole_kernel(folder, linked, monkeypatch):
    replace = os.replace

    def overtaken(source, target):
        with monkeypatch.context() as context:
            context.setattr(os, "replace", replace)
            kernel_cache.save("some", identity("text"), "symbol", b"the other's", [])
        replace(source, target)

    monkeypatch.setattr(os, "replace", overtaken)
    kernel_cache.save("some", identity("text"), "symbol", CODE, [])
    assert kernel_cache.load("some", identity("text")) == 1
    assert linked[0][2] == CODE


def test_a_kernel_that_calls_a_function_that_is_missing_here_is_not_linked(folder):
    kernel_cache.save("some", identity("text"), "symbol", CODE, ["sqrt", "no_such_function_anywhere"])
    assert kernel_cache.load("some", identity("text")) is None  # LLVM would end the process


def test_no_two_kernels_have_one_symbol(folder, no_kernels):
    stepped("gradient_descent")
    for file in folder.iterdir():
        symbol = file.read_bytes()[kernel_cache.SUM_BYTES :].split(b"\n")[0].decode()
        assert file.stem in symbol


def test_a_relative_cache_home_is_ignored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert kernel_cache.cache_folder() == tmp_path / "home" / ".cache" / "thalweg" / "kernels"
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("how", ["none", "open to others", "a file"])
def test_a_cache_that_cannot_be_used_costs_speed_only(how, tmp_path, monkeypatch, no_kernels):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "thalweg" / "kernels"
    if how == "a file":
        (tmp_path / "cache").write_text("")
    elif how == "open to others":
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    else:
        monkeypatch.setattr(os, "access", lambda *a: False)
    assert kernel_cache.cache_folder() is None
    assert torch.isfinite(stepped("gradient_descent")).all()
