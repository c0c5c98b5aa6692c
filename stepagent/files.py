"""Files that are whole or absent, locks between processes, and the cache."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Literal, overload

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


class NotAFile(UserError):
    """A pipe, a socket or a device lies where a file should."""

    exit_code = 2

    def __init__(self, path: str | Path):
        super().__init__(f"{path} is a pipe, a socket or a device: a file is expected")


@overload
def open_file(path: str | Path, mode: Literal["rb"]) -> BufferedReader: ...
@overload
def open_file(path: str | Path, mode: str = "r", errors: str | None = None) -> IO[Any]: ...
def open_file(path: str | Path, mode: str = "r", errors: str | None = None) -> IO[Any]:
    """Opens as `open` does, text as UTF-8, but regular files only: reading a pipe waits until
    somebody writes to it, and a device may have no end (one may be written to).

    Raises NotAFile, and OSError like `open`.
    """
    encoding = None if "b" in mode else "utf-8"
    return open(path, mode, encoding=encoding, errors=errors, opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a pipe that nobody reads, or a socket
            raise NotAFile(path) from None
        raise
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind) or stat.S_ISDIR(kind):  # `open` itself refuses folders
        return descriptor
    if stat.S_ISCHR(kind) and flags & os.O_WRONLY:  # a terminal, /dev/null
        os.set_blocking(descriptor, True)
        return descriptor
    os.close(descriptor)
    raise NotAFile(path)


def read_text(path: str | Path, errors: str | None = None) -> str:
    """The text of a file, which is UTF-8. Raises like `open_file`, and UnicodeDecodeError."""
    with open_file(path, errors=errors) as file:
        return str(file.read())


def read_bytes(path: str | Path) -> bytes:
    """The contents of a file. Raises like `open_file`."""
    with open_file(path, "rb") as file:
        return file.read()


def is_file(path: Path) -> bool:
    """Whether a file lies there. Raises NotAFile for a pipe, a socket or a device."""
    if path.is_file():
        return True
    if path.exists() and not path.is_dir():
        raise NotAFile(path)
    return False


def check_files(path: Path) -> None:
    """Raises NotAFile where a path, or a folder at any depth, holds anything but files and folders:
    for what is loaded by other libraries, which would wait for a pipe."""
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        is_file(file)


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


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where the file is missing or damaged."""
    try:
        value = parse_json(read_text(path))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_cached(path: Path, text: str) -> None:
    """Keeps a text in the cache, with its checksum; several processes may do so at once. Raises
    CacheError where the cache cannot be written."""
    with _naming_the_cache(path), Lock(path.parent / "write.lock", wait=True):
        write_text(path, f"{_text_digest(text)} {text}")


def read_cached(path: Path) -> str | None:
    """What `write_cached` keeps there; None where nothing is, or where it is damaged."""
    try:
        digest, _, text = read_bytes(path).decode("utf-8").partition(" ")
    except (OSError, ValueError, NotAFile):
        return None
    return text if digest == _text_digest(text) else None


def _text_digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


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


_MANIFEST = "manifest.json"


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Builds a folder of files unless it is there: by one process, whole or not at all.

    Parameters
    ----------
    folder: where the files are to lie.
    build: writes them into an empty folder, which then becomes `folder`.

    A manifest keeps each file's size, time and checksum: a folder in which a file is missing, cut
    or changed is built again. What a killed process left half-built is removed.

    Raises CacheError where it is to lie in the cache, and that cannot be written.
    """
    with _naming_the_cache(folder):
        if is_intact(folder):
            return
        lock = Lock(folder.with_name(folder.name + ".lock"), wait=True)
    with lock:
        if is_intact(folder):  # another process built it meanwhile
            return
        _remove(folder)
        prefix = f"building-{folder.name}-"
        for left in folder.parent.glob(f"{glob.escape(prefix)}*"):
            _remove(left)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix) as temporary:
            partial = Path(temporary) / "folder"
            partial.mkdir()
            build(partial)
            names = [p.relative_to(partial).as_posix() for p in partial.rglob("*") if p.is_file()]
            digests = {name: _digest(partial / name) for name in names}
            _write_manifest(partial, folder.name, digests)
            partial.rename(folder)


def is_intact(folder: Path) -> bool:
    """Whether the folder's files are those that its manifest names.

    Contents are read only where a file's time differs, as after copying a cache; reading gigabytes
    at every start would cost minutes.
    """
    try:
        manifest = parse_json(read_text(folder / _MANIFEST))
        if manifest["folder"] != folder.name:
            return False
        files, retimed = manifest["files"], False
        for name, (size, time, digest) in files.items():
            status = (folder / name).stat()
            if status.st_size != size or not stat.S_ISREG(status.st_mode):
                return False
            if status.st_mtime_ns != time:
                if _digest(folder / name) != digest:
                    return False
                retimed = True
        if retimed:
            with contextlib.suppress(OSError):  # a cache that may only be read
                _write_manifest(folder, folder.name, {name: row[2] for name, row in files.items()})
    except (OSError, NotAFile, ValueError, TypeError, KeyError, AttributeError):
        return False
    return True


def _write_manifest(folder: Path, name: str, digests: dict[str, str]) -> None:
    """Describes the folder's files; `name` is the one that the folder has, or will have."""
    stats = {file: (folder / file).stat() for file in digests}
    files = {file: (s.st_size, s.st_mtime_ns, digests[file]) for file, s in stats.items()}
    write_text(folder / _MANIFEST, json.dumps({"folder": name, "files": files}))


def _digest(path: Path) -> str:
    with open_file(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


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
        for file in (path, owner):
            if file.is_symlink():  # planted: opening it to write would empty its target
                file.unlink()
        self._lock = filelock.FileLock(path, timeout=-1 if wait else 0)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            holder = read_text(owner) if owner.is_file() else "unknown"
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
