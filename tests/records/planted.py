"""Things of somebody else's under the names of a run's files."""

import os
import socket
from pathlib import Path

KINDS = ["link to folder", "dangling link", "link to file", "file", "folder", "pipe", "socket"]


def plant(path: Path, kind: str, elsewhere: Path) -> None:
    """Put something under a name; what links point to is in `elsewhere`."""
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "precious").write_text("mine")
    match kind:
        case "link to folder":
            path.symlink_to(elsewhere)
        case "dangling link":
            path.symlink_to(elsewhere / "nothing")
        case "link to file":
            path.symlink_to(elsewhere / "precious")
        case "file":
            path.write_text("mine")
        case "folder":
            path.mkdir()
            (path / "precious").write_text("mine")
        case "pipe":
            os.mkfifo(path)
        case _:
            here = os.open(path.parent, os.O_RDONLY)  # a socket's address is a short path
            try:
                with socket.socket(socket.AF_UNIX) as made:
                    made.bind(f"/proc/self/fd/{here}/{path.name}")
            finally:
                os.close(here)


def contents(folder: Path) -> dict[Path, bytes]:
    """All files in a folder and below it."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
