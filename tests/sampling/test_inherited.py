"""A forked process reads files at places of its own, and takes no answers that are meant for its parent."""

import os
import socket
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from thalweg.sampling.inherited import part_from_parent
from thalweg.sampling.opening import open_data

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is for forked processes, on Linux")


def in_child(work):
    """Do the work in a fork, and give the status with which it ends: 0 where nothing failed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_a_child_reads_a_file_at_a_place_of_its_own(mode, tmp_path):
    (tmp_path / "rows").write_bytes(b"0123456789")
    with open(tmp_path / "rows", mode, buffering=0) as file:
        assert file.read(2) == b"01"
        (tmp_path / "rows").unlink()  # as files are that nobody else is to see

        def work():
            part_from_parent()
            return file.read(3) == b"234" and file.seek(9) == 9 and file.read() == b"9"

        assert in_child(work) == 0
        assert file.read(2) == b"23"


def test_what_both_write_comes_one_behind_the_other(tmp_path):
    with open(tmp_path / "log", "wb", buffering=0) as file:
        file.write(b"one ")

        def work():
            part_from_parent()
            return file.write(b"two ") == 4

        assert in_child(work) == 0
        file.write(b"three")
    assert (tmp_path / "log").read_bytes() == b"one two three"


def test_connections_and_pipes_are_ended_in_the_child_and_go_on_in_the_parent():
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    kept = os.pipe()
    with ours, theirs:
        theirs.send(b"answer")

        def work():
            part_from_parent({kept[1]})
            os.write(kept[1], b"kept")
            assert ours.recv(6) == b""
            assert os.read(reading, 1) == b""
            for write in (lambda: ours.send(b"question"), lambda: os.write(writing, b"task")):
                with pytest.raises(OSError, match="Broken pipe"):
                    write()
            return True

        assert in_child(work) == 0
        assert ours.recv(6) == b"answer"
        ours.send(b"parent")
        assert theirs.recv(20) == b"parent"
        os.write(writing, b"own")
        assert (os.read(reading, 9), os.read(kept[0], 9)) == (b"own", b"kept")
    for number in (reading, writing, *kept):
        os.close(number)


OPTIONS = {
    "name": "data",
    "float_dtype": torch.float32,
    "device": torch.device("cpu"),
    "collate_fn": None,
    "has_targets": True,
}


class Rows(Dataset):
    """Reads each example from an open file, without a buffer: the place in it is the system's."""

    def __init__(self, path, connection=None):
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115
        weakref.finalize(self, self.file.close)
        self.connection = connection

    def __len__(self):
        return 40

    def __getitem__(self, index):
        self.file.seek(index)
        if self.connection is not None:
            self.connection.send(b"?")
        return torch.tensor([float(self.file.read(1)[0])]), torch.tensor(0)


@pytest.mark.parametrize("as_loader", [False, True])
def test_loader_workers_do_not_move_the_place_in_a_file_of_the_person(as_loader, tmp_path):
    (tmp_path / "rows").write_bytes(bytes(range(40)))
    rows, begun = Rows(tmp_path / "rows"), []
    loader = DataLoader(rows, batch_size=8, num_workers=2, worker_init_fn=begun.append)
    source, _ = open_data(loader if as_loader else rows, **OPTIONS)
    rows.file.seek(33)
    batches = list(source.load(([(0, k), (0, k + 20)] for k in range(20)), 0, 2))
    assert [batch[0].flatten().tolist() for batch in batches] == [[k, k + 20] for k in range(20)]
    assert rows.file.tell() == 33
    rows.file.close()


def test_workers_that_no_loader_of_the_persons_asked_for_do_not_share_a_connection_over_the_net(tmp_path):
    (tmp_path / "rows").write_bytes(bytes(range(40)))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        served, _ = server.accept()
        with served:
            served.setblocking(False)
            source, _ = open_data(Rows(tmp_path / "rows", client), **OPTIONS)
            list(source.load(iter([[(0, 1)]]), 0, 0))
            before = len(served.recv(1000))
            with pytest.raises(Exception, match="Broken pipe"):
                list(source.load(iter([[(0, 1)]]), 0, 1))
            assert before
            with pytest.raises(BlockingIOError):
                served.recv(1000)


SHARED_MEMORY = """
import gc, multiprocessing, os, sys
import numpy as np, torch
from thalweg.sampling.inherited import shares_memory

lock = multiprocessing.Lock()
np.memmap("read", "f4", "w+", shape=(4,)).flush()
read = np.memmap("read", "f4", "r", shape=(4,))
assert not shares_memory()
{made}
assert shares_memory()
"""

MADE = {
    "tensor": "shared = torch.zeros(4).share_memory_()",
    "array": "shared = np.memmap('written', 'f4', 'w+', shape=(4,))",
    "value": "shared = multiprocessing.Value('d', 0.0)",
    "tensor that nobody holds any more": """gc.disable()
cycle = [torch.ones(5000).share_memory_()]
cycle.append(cycle)
assert shares_memory()
del cycle
assert not shares_memory()
shared = torch.zeros(4).share_memory_()""",
}


@pytest.mark.parametrize("kind", MADE)
def test_memory_that_a_child_would_share_is_seen(kind, tmp_path):
    """In a process of its own: that of the tests keeps what `multiprocessing` once shared until it ends."""
    program = SHARED_MEMORY.format(made=MADE[kind])
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
