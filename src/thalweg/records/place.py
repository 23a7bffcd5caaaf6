"""The place a run is written to: its folder may be removed, moved away or replaced by somebody while the run goes on."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from thalweg.records import files
from thalweg.records.run_folder import RunFolder


class Place:
    """The folder of a run that is being written, with what its small files held when the writing began."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._identity = files.identity(folder.path)
        names = folder.plan_path, folder.task_path, folder.request_path, folder.status_path
        self._kept = dict[str, bytes]()
        for path in names:
            with suppress(OSError):  # missing, or not to be read: then it is not written again
                self._kept[path.name] = files.read(path)

    @property
    def is_lost(self) -> bool:
        """Whether the folder is no longer there, or another one is under its name."""
        return files.identity(self.folder.path) != self._identity

    def restore(self) -> list[str]:
        """Write small files again that were removed, and give their names. Raises OSError."""
        missing = [name for name in self._kept if not os.path.lexists(self.folder.path / name)]
        for name in missing:
            files.replace(self.folder.path / name, self._kept[name])
        return missing

    def elsewhere(self) -> list[Path]:
        """Folders in which a copy of the run may be made where this one cannot be written, best first."""
        return [self.folder.path.parent, Path(tempfile.gettempdir())]

    def copy_to(self, parent: Path) -> Place:
        """Make a folder beside others, with the small files as they were, and give it. Raises OSError."""
        folder = RunFolder(Path(tempfile.mkdtemp(prefix=f"{self.folder.path.name[:100]}-saved-", dir=parent)))
        for name, content in self._kept.items():
            files.replace(folder.path / name, content)
        return Place(folder)
