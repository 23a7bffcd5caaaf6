import hashlib
import json
import os

import pytest
import safetensors.torch
import torch

from thalweg.errors import CheckpointError
from thalweg.records import tensorfile
from thalweg.records.tensorfile import DTYPES, FileSum, read_tensors, write_tensors


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 2, (3, 8), generator=generator, dtype=torch.uint8)
    tensors = {code: raw.view(dtype).clone() for code, dtype in DTYPES.items()}
    return tensors | {"0-dim": torch.tensor(2.5), "empty": torch.zeros(0, 3), "turned": torch.randn(4, 5).t()[1:]}


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and raw_bytes(one) == raw_bytes(other)


def raw_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_the_safetensors_library_reads_what_is_written(tmp_path):
    tensors = some_tensors()
    write_tensors(tmp_path / "t", tensors)
    back = safetensors.torch.load_file(tmp_path / "t")
    assert back.keys() == tensors.keys()
    assert all(same(back[name], tensors[name]) for name in tensors)


def test_what_the_safetensors_library_writes_is_read(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    safetensors.torch.save_file(tensors, tmp_path / "t", metadata={"format": "pt"})
    data = (tmp_path / "t").read_bytes()
    back = read_tensors(tmp_path / "t", FileSum(len(data), hashlib.sha256(data).hexdigest()))
    assert back.keys() == tensors.keys()
    assert all(same(back[name], tensors[name]) for name in tensors)


def test_length_and_sum_are_those_of_the_file(tmp_path):
    written = write_tensors(tmp_path / "t", {"w": torch.arange(tensorfile.CHUNK, dtype=torch.float32)})
    data = (tmp_path / "t").read_bytes()
    assert written == FileSum(len(data), hashlib.sha256(data).hexdigest())


def test_a_tensor_read_has_its_own_aligned_memory(tmp_path):
    written = write_tensors(tmp_path / "t", {"a": torch.ones(3, dtype=torch.bool), "w": torch.randn(5)})
    back = read_tensors(tmp_path / "t", written)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in back.values())
    assert back["w"].untyped_storage().nbytes() == 20


def with_header(path, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + body
    path.write_bytes(data)
    return FileSum(len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"[1]",
        b"7",
        b'{"a": null}',
        b"[" * 100_000,
        {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
        {"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
    ],
)
def test_a_header_that_lies_is_refused_even_where_the_sum_agrees(tmp_path, header):
    written = with_header(tmp_path / "t", header, body=bytes(8))
    with pytest.raises(CheckpointError, match="t is altered"):
        read_tensors(tmp_path / "t", written)


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    data = (2**63).to_bytes(8, "little")
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(CheckpointError, match="header"):
        read_tensors(tmp_path / "t", FileSum(8, hashlib.sha256(data).hexdigest()))


def test_an_existing_file_is_never_written_over(tmp_path):
    (tmp_path / "t").write_text("mine")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "t", {})
    assert (tmp_path / "t").read_text() == "mine"


def test_a_pipe_under_a_files_name_does_not_block_the_reader(tmp_path):
    os.mkfifo(tmp_path / "t")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_tensors(tmp_path / "t", FileSum(0, hashlib.sha256().hexdigest()))
