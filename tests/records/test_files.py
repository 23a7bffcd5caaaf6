import errno
import hashlib
import os
import sys

import pytest
from planted import KINDS, contents, plant

from thalweg.records import files

linux = pytest.mark.skipif(sys.platform != "linux", reason="pipes and sockets as they are on Linux")


def test_a_file_is_replaced_as_a_whole_and_its_sum_given(tmp_path):
    path = tmp_path / "f"
    for data in (b"", b"one", b"two" * files.CHUNK):
        assert files.replace(path, data) == (len(data), hashlib.sha256(data).hexdigest())
        assert files.read(path) == data
    assert os.listdir(tmp_path) == ["f"]


def test_the_disk_confirms_file_and_folder_before_it_counts_as_written(tmp_path, monkeypatch):
    events, sync, rename = [], os.fsync, os.replace
    kind = {True: "folder", False: "file"}
    monkeypatch.setattr(os, "fsync", lambda d: (events.append(kind[os.path.isdir(f"/proc/self/fd/{d}")]), sync(d)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("rename"), rename(*names)))
    files.replace(tmp_path / "f", b"1")
    assert events == ["file", "rename", "folder"] if sys.platform == "linux" else "rename" in events


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_what_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, at):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    files.replace(tmp_path / "f", b"old")
    monkeypatch.setattr(os, at, fail)
    with pytest.raises(OSError, match="No space left"):
        files.replace(tmp_path / "f", b"new")
    assert contents(tmp_path) == {(tmp_path / "f").relative_to(tmp_path): b"old"}


@linux
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "file"])
def test_what_is_no_regular_file_is_neither_followed_nor_waited_for_nor_written_over(tmp_path, kind):
    path, elsewhere = tmp_path / "f", tmp_path / "elsewhere"
    plant(path, kind, elsewhere)
    before = path.lstat()
    for use in (files.read, files.check_regular, lambda path: files.replace(path, b"new")):
        with pytest.raises(files.NotRegularError, match="it is a"):
            use(path)
    assert path.lstat().st_ino == before.st_ino
    assert not files.is_regular(path)
    assert files.set_aside_unless_regular(path) == tmp_path / "f.set-aside"
    assert (tmp_path / "f.set-aside").lstat().st_ino == before.st_ino
    files.replace(path, b"new")
    assert files.set_aside_unless_regular(path) is None
    assert files.set_aside(path) == tmp_path / "f.set-aside-2"
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]
    assert (elsewhere / "precious").read_bytes() == b"mine"


def test_a_link_planted_under_the_name_of_a_draft_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda count: b"\0" * count)
    plant(tmp_path / f".thalweg-{'0' * 16}.tmp", "link to file", tmp_path / "elsewhere")
    for write in (lambda: files.replace(tmp_path / "f", b"new"), lambda: files.check_writable(tmp_path)):
        with pytest.raises(FileExistsError):
            write()
    assert (tmp_path / "elsewhere" / "precious").read_text() == "mine"


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "f", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match=r"1,099,511,627,776 bytes, which is no file of a run"):
        files.read(tmp_path / "f")


@pytest.mark.parametrize("code", [errno.EEXIST, errno.EPERM])
def test_a_file_system_that_renames_to_free_names_only_is_written_to(tmp_path, monkeypatch, code):
    def refuse(source, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    (tmp_path / "f").write_bytes(b"old")
    files.replace(tmp_path / "f", b"new")
    assert os.listdir(tmp_path) == ["f"]
    assert files.read(tmp_path / "f") == b"new"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES, errno.EIO])
def test_a_file_system_that_cannot_confirm_folders_is_written_to_and_a_broken_disk_is_told(tmp_path, monkeypatch, code):
    sync = os.fsync

    def only_files(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    if code == errno.EIO and sys.platform == "linux":
        with pytest.raises(OSError, match="Input/output"):
            files.replace(tmp_path / "f", b"1")
    else:
        files.replace(tmp_path / "f", b"1")
    assert files.read(tmp_path / "f") == b"1"
