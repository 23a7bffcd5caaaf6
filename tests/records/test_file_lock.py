import os
import signal
import subprocess
import sys

import pytest

from thalweg.records import file_lock


def opened(path):
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def test_a_lock_is_held_by_one_at_a_time_and_refused_files_are_closed(tmp_path):
    held, other = opened(tmp_path / "lock"), opened(tmp_path / "lock")
    file_lock.acquire(held)
    with pytest.raises(BlockingIOError):
        file_lock.acquire(other)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(other)
    file_lock.release(held)
    again = opened(tmp_path / "lock")
    file_lock.acquire(again)
    file_lock.release(again)


def test_a_lock_ends_with_its_process_although_a_child_lives_on(tmp_path):
    """As a loader worker does, for some seconds after its parent was killed."""
    program = (
        "import os, sys\nfrom thalweg.records import file_lock\n"
        f"file_lock.acquire(os.open({str(tmp_path / 'lock')!r}, os.O_RDWR | os.O_CREAT, 0o644))\n"
        "child = os.fork()\nif child == 0: sys.stdin.read(); os._exit(0)\n"
        "print(child, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert parent.wait() == -signal.SIGKILL
    os.kill(child, 0)  # it lives
    descriptor = opened(tmp_path / "lock")
    file_lock.acquire(descriptor)
    file_lock.release(descriptor)
    parent.stdin.close()
    parent.stdout.close()
