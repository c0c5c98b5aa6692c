"""Files that are whole or absent, locks between processes, and the cache."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from stepagent.errors import SetupError, UserError


def cache_folder() -> Path:
    """`$STEPAGENT_CACHE`, or `stepagent` in the user's cache folder. It may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("STEPAGENT_CACHE") or Path(home) / "stepagent")


class CacheError(SetupError, OSError):
    """The cache cannot be written."""

    def __str__(self) -> str:
        return (
            f"the cache {cache_folder()} cannot be used ({self.strerror}): set STEPAGENT_CACHE to "
            "a folder that can be written"
        )


@contextlib.contextmanager
def _naming_the_cache(path: Path) -> Iterator[None]:
    """Raises CacheError in place of an OSError about `path`, where that is in the cache."""
    try:
        yield
    except OSError as error:
        if path.is_relative_to(cache_folder()) and not isinstance(error, CacheError):
            raise CacheError(error.errno, error.strerror or str(error)) from error
        raise


def write_atomically(path: Path, save: Callable[[Path], Any]) -> None:
    """Has `save` write a file or directory under another name, then renames it: whole, or absent.

    One process at a time may write a path. Raises OSError (disk full, say) that names the path;
    what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    _remove(partial)
    try:
        save(partial)
        _flush(partial)
        if path.is_dir():
            old = path.with_name(path.name + ".old")
            _remove(old)
            os.rename(path, old)
            os.rename(partial, path)
            shutil.rmtree(old)
        else:
            os.replace(partial, path)
    except Exception as error:
        with contextlib.suppress(OSError):
            _remove(partial)
        if isinstance(error, FileNotFoundError):  # what `save` reads; the folder is there
            raise
        # safetensors has an exception of its own for a full disk; it is not imported here.
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            number = getattr(error, "errno", None) or errno.EIO
            why = getattr(error, "strerror", None) or error
            raise OSError(number, f"cannot write {path}: {why}") from error
        raise


def write_text(path: Path, text: str) -> None:
    """A file of UTF-8 text, written atomically; lone surrogates become `?`."""
    write_atomically(
        path, lambda partial: partial.write_text(text, encoding="utf-8", errors="replace")
    )


def write_shared_text(path: Path, text: str) -> None:
    """`write_text` of a file that several processes may write at once, such as one in the cache.
    Raises CacheError where that cannot be written."""
    with _naming_the_cache(path), Lock(path.parent / "write.lock", wait=True):
        write_text(path, text)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Puts the contents on the disk, so that a rename never outlives what it names."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def build_once(
    folder: Path, build: Callable[[Path], None], is_complete: Callable[[], bool]
) -> None:
    """Builds a folder of files unless it is there: by one process, whole or not at all.

    Parameters
    ----------
    folder: where the files are to lie.
    build: writes them into an empty folder, which then becomes `folder`.
    is_complete: whether `folder` holds what it should; a damaged folder is built again.

    Raises CacheError where it is to lie in the cache, and that cannot be written.
    """
    with _naming_the_cache(folder):
        if is_complete():
            return
        lock = Lock(folder.with_name(folder.name + ".lock"), wait=True)
    with lock:
        if is_complete():  # another process built it meanwhile
            return
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as temporary:
            partial = Path(temporary) / "folder"
            partial.mkdir()
            build(partial)
            partial.rename(folder)


class Locked(UserError, OSError):
    """Another process holds the lock."""


class Lock:
    """A lock file, held by one process; it is free again when the process ends, however it ends.

    Parameters
    ----------
    path: the lock file; its folder is made.
    wait: wait for the process that holds it; otherwise raise Locked, which names that process.
    """

    def __init__(self, path: Path, *, wait: bool = False):
        path.parent.mkdir(parents=True, exist_ok=True)
        owner = path.with_name(path.name + ".pid")
        self._lock = filelock.FileLock(path, timeout=-1 if wait else 0)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            holder = owner.read_text() if owner.is_file() else "unknown"
            raise Locked(
                errno.EAGAIN, f"{path.parent} is in use by another process (id {holder})"
            ) from None
        owner.write_text(str(os.getpid()))

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
