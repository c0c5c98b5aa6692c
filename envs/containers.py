"""What contains data, recognised by its first bytes: compression, archives, tables, pointers.

A file is what its first bytes say, whatever its name ends in. `open_bytes` undoes compression;
`walk` goes through the files of a folder, of an archive (zip, tar, compressed tar) or the file
itself, in flat memory. What macOS adds (`__MACOSX/`, `._name`, `.DS_Store`) is passed over. What
cannot be read here raises ContainerError, which names the file and says what makes it readable.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from stepagent.errors import UsageError

_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PAR1", "parquet"),
    (b"ARROW1", "arrow"),
    (b"\xff\xff\xff\xff", "arrow"),  # a stream, as the library `datasets` stores it
    (b"version https://git-lfs", "git-lfs"),
    (b"\x00\x05\x16\x07", "apple"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "rar"),
    (b"\x80\x02", "pickle"),
    (b"\x80\x03", "pickle"),
    (b"\x80\x04", "pickle"),
    (b"\x80\x05", "pickle"),
)
COMPRESSED = ("gzip", "bzip2", "xz", "zstd")
_ADVICE = {
    "7z": "is a 7z archive: unpack it (7z x FILE) and name what it holds",
    "rar": "is a RAR archive: unpack it (unrar x FILE) and name what it holds",
    "git-lfs": "is a Git LFS pointer, not the data: `git lfs pull` fetches it",
    "apple": "holds what macOS notes about a file, not the data: name the one without `._`",
    "web page": "is a web page, not the data: the download was answered with a page to read "
    "(a login, a warning); open its address in a browser and save the file",
    "zip": "is a zip archive: unpack it (unzip FILE) and name the file inside",
    "tar": "is a tar archive: unpack it (tar xf FILE) and name the file inside",
    "parquet": "is parquet, a table: `duckdb -c \"COPY 'FILE' TO 'FILE.jsonl'\"` writes it as "
    "lines of JSON",
    "arrow": "is an Arrow table of the library `datasets`: "
    "`datasets.load_from_disk(FOLDER).to_json('FILE.jsonl')` writes it as lines of JSON",
    "pickle": "is a pickle, which can run code and is not read: save the data as JSON",
    "empty": "is empty: fetch or make the file again",
}
"""What a file is, and what makes it readable."""


class ContainerError(UsageError):
    """A file that cannot be read as it is; the message names it and says what to do."""


def kind(head: bytes) -> str:
    """What a file with these first bytes is (some hundred are enough); "" for text and the rest.

    >>> kind(b"PK\\x03\\x04..."), kind(b" <!DOCTYPE html>"), kind(b'{"a": 1}'), kind(b"")
    ('zip', 'web page', '', 'empty')
    """
    if not head:
        return "empty"
    for magic, name in _KINDS:
        if head.startswith(magic):
            return name
    if head[257:262] == b"ustar":
        return "tar"
    return "web page" if head.lstrip()[:9].lower() in (b"<!doctype", b"<html>") else ""


def kind_of(path: Path) -> str:
    """`kind` of a file. Raises ContainerError if there is none or it cannot be opened."""
    try:
        with path.open("rb") as file:
            return kind(file.read(512))
    except OSError as error:
        raise ContainerError(f"{path.absolute()} cannot be read: {error.strerror}") from None


def unreadable(path: Path | str, what: str) -> ContainerError:
    """The error for a file of that kind: what it is, and what makes it readable."""
    name = path.name if isinstance(path, Path) else path
    return ContainerError(f"{path} {_ADVICE[what].replace('FILE', name)}")


def is_ours(name: str) -> bool:
    """Whether a file is one of the data's own: not one that macOS added.

    >>> is_ours("test/a.json"), is_ours("__MACOSX/test/._a.json"), is_ours("._a.json")
    (True, False, False)
    """
    parts = PurePosixPath(name).parts
    return bool(parts) and "__MACOSX" not in parts and not parts[-1].startswith((".", "~$"))


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, uncompressed where its first bytes say that it is compressed.

    Raises ContainerError for any other container, an empty file, and one that is cut or damaged.
    """
    what = kind_of(path)
    if what and what not in COMPRESSED:
        raise unreadable(path, what)
    with path.open("rb") as file:
        yield _Named(_plain(file, what), str(path)).buffered()


def walk(
    path: Path, wanted: Callable[[str], bool], password: str | None = None
) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, bytes) of each wanted file in a folder or archive, or of the file itself.

    Names are relative, with `/`; compressed files in a folder or zip archive are uncompressed. The
    order is the archive's, a folder's is sorted. Each file must be read before the next.
    Raises ContainerError as `open_bytes`, and for a password that is missing or wrong.
    """
    if path.is_dir():
        for root, folders, files in os.walk(path):
            folders.sort()
            for file in sorted(files):
                name = (Path(root) / file).relative_to(path).as_posix()
                if is_ours(name) and wanted(name):
                    with open_bytes(path / name) as opened:
                        yield name, opened
        return
    what = kind_of(path)
    if what == "zip":
        yield from _walk_zip(path, wanted, password)
    elif what == "tar" or (what in COMPRESSED and _holds_tar(path, what)):
        yield from _walk_tar(path, wanted, what)
    elif wanted(path.name):
        with open_bytes(path) as opened:
            yield path.name, opened


def names_in_zip(path: Path) -> list[str]:
    """The names of the data's own files in a zip archive, sorted. Raises ContainerError."""
    with _zip(path) as archive:
        return sorted(n for n in archive.namelist() if not n.endswith("/") and is_ours(n))


@contextmanager
def open_in_zip(path: Path, name: str, password: str | None = None) -> Iterator[IO[bytes]]:
    """A file of a zip archive, uncompressed. Raises ContainerError that says what is wrong."""
    with _zip(path) as archive, _member(archive, path, name, password) as opened:
        yield opened


def _zip(path: Path) -> zipfile.ZipFile:
    with _errors(str(path)):
        return zipfile.ZipFile(path)


def _walk_zip(
    path: Path, wanted: Callable[[str], bool], password: str | None
) -> Iterator[tuple[str, IO[bytes]]]:
    with _zip(path) as archive:
        for name in archive.namelist():
            if not name.endswith("/") and is_ours(name) and wanted(name):
                with _member(archive, path, name, password) as opened:
                    yield name, opened


def _walk_tar(
    path: Path, wanted: Callable[[str], bool], what: str
) -> Iterator[tuple[str, IO[bytes]]]:
    with (
        _errors(str(path)),
        path.open("rb") as file,
        tarfile.open(fileobj=_plain(file, what), mode="r|") as tar,
    ):
        for member in tar:
            if member.isfile() and is_ours(member.name) and wanted(member.name):
                yield member.name, _Named(tar.extractfile(member), str(path)).buffered()


@contextmanager
def _member(
    archive: zipfile.ZipFile, path: Path, name: str, password: str | None
) -> Iterator[IO[bytes]]:
    where = f"{path}[{name}]"
    secret = password.encode() if password else None
    locked = ""
    if archive.getinfo(name).flag_bits & 1:
        # The check of this old encryption is one byte: a wrong password may also show later, as
        # data that cannot be unpacked.
        locked = "the password given is wrong" if password else "give its password"
    with _errors(where, locked):
        file = archive.open(name, pwd=secret)
    with file:
        buffered = _Named(file, where, locked).buffered()
        yield _Named(_plain(buffered, kind(buffered.peek(512)[:512])), where, locked).buffered()


@contextmanager
def _errors(name: str, locked: str = "") -> Iterator[None]:
    """Raises ContainerError with the file's name in place of what broken containers raise.

    `locked`: what to say of the password, for an encrypted file.
    """
    try:
        yield
    except ContainerError:
        raise
    except NotImplementedError as error:
        raise ContainerError(
            f"{name}: {error}: unpack the archive by hand (7z, unzip) and name the folder"
        ) from None
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, such as a lack of permission
        if isinstance(error, RuntimeError) and not locked:
            raise
        if locked:
            raise ContainerError(
                f"{name} cannot be unpacked ({error}). It is encrypted: {locked} (argument "
                "`password`; the benchmark's authors publish it next to the file)"
            ) from None
        raise ContainerError(f"{name} is cut or damaged ({error}): fetch it again") from None


_BROKEN: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, RuntimeError),  # RuntimeError: zipfile's, for a password
)


class _Named(io.RawIOBase):
    """A stream whose errors name the file."""

    def __init__(self, file: Any, name: str, locked: str = ""):
        self._file, self._name, self._locked = file, name, locked

    def buffered(self) -> io.BufferedReader:
        return io.BufferedReader(self, 1 << 16)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _errors(self._name, self._locked):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _holds_tar(path: Path, what: str) -> bool:
    with _errors(str(path)), path.open("rb") as file:
        return kind(_plain(file, what).read(512)) == "tar"


def _plain(file: Any, what: str) -> IO[bytes]:
    """The stream without its compression."""
    opened: Any = file
    if what == "gzip":
        opened = gzip.open(file, "rb")
    elif what == "bzip2":
        opened = bz2.open(file, "rb")
    elif what == "xz":
        opened = lzma.open(file, "rb")
    elif what == "zstd":
        opened = io.BufferedReader(_Zstandard(file))
    return opened


class _Zstandard(io.RawIOBase):
    """A stream of zstandard, of any window size. A cut or damaged one raises an OSError.

    (The library's own reader takes the end of a cut file for the end of the data.)
    """

    def __init__(self, file: IO[bytes]):
        import zstandard

        self._file, self._left = file, b""
        self._unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._error = zstandard.ZstdError
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            packed = self._file.read(1 << 16)
            if not packed:
                if self._frame is not None:
                    raise OSError("its compression ends early")
                return 0
            self._left = b"".join(self._unpacked(packed))
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def _unpacked(self, packed: bytes) -> Iterator[bytes]:
        """What the next bytes hold; a file may consist of several frames."""
        while packed:
            self._frame = self._frame or self._unpacker.decompressobj()
            try:
                yield self._frame.decompress(packed)
            except self._error as error:
                raise OSError(f"its compression is broken: {error}") from None
            packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
