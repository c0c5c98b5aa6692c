"""Where the environments keep what is dear to make again: indices, unpacked files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """`$STEPAGENT_CACHE`, or `stepagent` in the user's cache folder. It may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("STEPAGENT_CACHE") or Path(home) / "stepagent")


def made_once(folder: Path, make: Callable[[Path], None], complete: Callable[[], bool]) -> None:
    """Makes a folder of files unless it is there: by one process, whole or not at all.

    Parameters
    ----------
    folder: where the files are to lie.
    make: writes them into an empty folder, which then becomes `folder`.
    complete: whether `folder` holds what it should; what is damaged is made again.
    """
    if complete():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(folder.name + ".lock")):
        if complete():  # another process made it meanwhile
            return
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as partial:
            made = Path(partial) / "made"
            made.mkdir()
            make(made)
            made.rename(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock file, so that one process works and the others wait for it."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: two may work, the first to end wins
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back
