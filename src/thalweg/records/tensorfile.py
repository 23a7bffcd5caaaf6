"""Tensors in a safetensors file, written or read together with its sha256 in one pass, without a second copy in memory.

The format is the published one (8 bytes of header length, a JSON header, the tensors' bytes), so any safetensors reader
opens the files. The library itself is not used, for two reasons: the sum here is of the bytes in memory, not of what the
disk gave back; and tensors are read into memory of torch's own allocator, aligned as in the run that wrote them, not
mapped from a file that may change meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from thalweg.errors import CheckpointError
from thalweg.records import files
from thalweg.records.files import CHUNK, FileSum

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileSum:
    """Write tensors (strided, of a dtype in `DTYPES`, on any device) as a safetensors file; returns length and sum."""
    # Wide items first, as the library does it: every tensor then starts at a multiple of its item size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    return files.create(path, _parts(dict(ordered)))


def read(path: Path, expected: FileSum) -> bytes:
    """Read a whole small file and give its bytes only if length and sum are the expected ones."""
    with _opened(path, expected) as file:
        data = file.read()
    _compare(path, hashlib.sha256(data).hexdigest(), expected)
    return data


def read_tensors(path: Path, expected: FileSum) -> dict[str, torch.Tensor]:
    """Read a safetensors file into tensors on the CPU and give them only if length and sum are the expected ones.

    Raises CheckpointError where the file is missing, not regular, of another length, altered, or no safetensors file.
    """
    digest = hashlib.sha256()
    with _opened(path, expected) as file:
        try:
            tensors = dict(_read_each(file, expected.bytes, digest))
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{path.name} is altered: its header cannot be read.") from error
    _compare(path, digest.hexdigest(), expected)
    return tensors


def check(path: Path, expected: FileSum) -> None:
    """Raise CheckpointError unless the file's length and sum are the expected ones."""
    with _opened(path, expected) as file:
        digest = hashlib.file_digest(file, "sha256")
    _compare(path, digest.hexdigest(), expected)


def check_length(path: Path, expected: FileSum) -> None:
    """Raise CheckpointError unless the file is there, regular and as long as expected; its bytes are not read."""
    try:
        status = path.lstat()
    except OSError as error:
        raise CheckpointError(f"{path.name} is missing or cannot be read ({error.strerror}).") from error
    # A pipe planted under the name would block the reader for ever.
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path.name} is not a regular file.")
    if status.st_size != expected.bytes:
        raise CheckpointError(f"{path.name} has {status.st_size:,} bytes where {expected.bytes:,} were written.")


def _opened(path: Path, expected: FileSum) -> BufferedReader:
    check_length(path, expected)
    try:
        return open(path, "rb")
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror}).") from error


def _compare(path: Path, found: str, expected: FileSum) -> None:
    if found != expected.sha256:
        raise CheckpointError(f"{path.name} is altered: its bytes do not give the sum that was written down.")


def _parts(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview | bytes]:
    header, position = dict[str, Any](), 0
    for name, tensor in tensors.items():
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for tensor in tensors.values():
        yield _bytes_of(tensor.detach().resolve_conj().resolve_neg().cpu().contiguous())


def _read_each(file: BufferedReader, length: int, digest: Any) -> Iterator[tuple[str, torch.Tensor]]:
    start = _exactly(file, 8, digest)
    header_length = int.from_bytes(start, "little")
    if header_length > length - 8:
        raise ValueError("header longer than the file")
    header = json.loads(_exactly(file, header_length, digest))
    header.pop("__metadata__", None)
    position = 0
    # The header is untrusted until the sum is known: no entry may allocate more memory than the file has bytes.
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        dtype, shape = DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
        if begin != position or end - begin != math.prod(shape) * dtype.itemsize or end > length - 8 - header_length:
            raise ValueError("offsets do not fit")
        tensor = torch.empty(shape, dtype=dtype)
        _fill(file, _bytes_of(tensor), digest)
        yield name, tensor
        position = end
    if position != length - 8 - header_length:
        raise ValueError("bytes left over")


def _exactly(file: BufferedReader, count: int, digest: Any) -> bytes:
    data = file.read(count)
    digest.update(data)
    if len(data) != count:
        raise ValueError("the file ends early")
    return data


def _fill(file: BufferedReader, memory: memoryview, digest: Any) -> None:
    for start in range(0, len(memory), CHUNK):
        chunk = memory[start : start + CHUNK]
        if file.readinto(chunk) != len(chunk):
            raise ValueError("the file ends early")
        digest.update(chunk)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, shared, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
