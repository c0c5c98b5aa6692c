"""Containers of data files, recognised by their first bytes, whatever the files are called.

`members` lists the files of a folder or an archive (zip, tar), or the one file itself. `opened`
gives a member's kind and its bytes without compression (gzip, bzip2, xz, zstd, also one inside
another) as a stream, so that memory stays flat. `tables` reads parquet and arrow. What cannot be
read here raises SourceError with the command that makes it readable.
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
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from stepagent.errors import UsageError
from stepagent.files import open_file

EXPANSION = 300
"""A file may expand to this many times its size: real text reaches 20, an archive bomb 1,000."""
FREE_EXPANSION = 256 << 20
"""Bytes that every file may expand to."""
_HEAD = 1024
_LAYERS = 4

_MAGIC = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
    (b"LZIP\x01", "lzip"),
    (b"\x1f\x9d", "compress"),
    (b"PAR1", "parquet"),
    (b"ARROW1", "arrow"),
    (b"\xff\xff\xff\xff", "arrow stream"),
    (b"FEA1", "feather (version 1)"),
    (b"SQLite format 3\x00", "SQLite"),
    (b"\x89HDF\r\n", "HDF5"),
    (b"\x93NUMPY", "NumPy"),
    (b"Obj\x01", "Avro"),
    (b"%PDF-", "PDF"),
    (b"\x00\x05\x16\x07", "AppleDouble"),
    (b"version https://git-lfs", "Git LFS pointer"),
)
_ADVICE = {
    "empty": "is empty: fetch or make the file again",
    "web page": "is a web page, not the data: fetch the file itself, by its raw or download link",
    "pickle": "is a pickle, which can run code when it is read: export it as JSON lines instead",
    "AppleDouble": "is what macOS keeps beside a file, not the data: name the file without `._`",
    "Git LFS pointer": "is a Git LFS pointer, not the data: git lfs pull fetches it",
    "MediaWiki dump": "is a MediaWiki dump, which only a corpus is made from: stepagent "
    "wikipedia-corpus {path} --out FOLDER",
    "SQLite": "is an SQLite database: export a table of it, with sqlite3 -json {path} "
    "'select * from TABLE' > TABLE.json",
    "binary": "is not text: if it is UTF-16, iconv -f utf-16le -t utf-8 {path} makes it readable",
}
_UNPACKED_BY = {
    "zip": "unzip",
    "tar": "tar xf",
    "gzip": "gunzip",
    "bzip2": "bunzip2",
    "xz": "unxz",
    "zstd": "unzstd --long=31",
    "lz4": "lz4 -d",
    "lzip": "lzip -d",
    "7z": "7z x",
    "rar": "unrar x",
    "compress": "uncompress",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
"""Endings of compressed files."""
TABLES = ("parquet", "arrow", "arrow stream")
"""The kinds that `tables.rows` reads."""


class SourceError(UsageError):
    """A data file that cannot be used; the message names it and says what to do."""


def kind_of(head: bytes) -> str:
    """What a file with these first bytes (1,024 are enough) is; "text" for anything readable.

    >>> kind_of(b"PAR1..."), kind_of(b'{"a": 1}'), kind_of(b"<!DOCTYPE html><p>Log in")
    ('parquet', 'text', 'web page')
    """
    if not head:
        return "empty"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:3] == b"BZh" and head[3:4].isdigit():
        return "bzip2"
    if head[257:262] == b"ustar":
        return "tar"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "text"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "web page"
    if b"<mediawiki" in text:
        return "MediaWiki dump"
    return "binary" if b"\0" in head else "text"


@dataclass(frozen=True)
class Member:
    """A file of data: on the disk, or inside an archive. As text, what messages call it."""

    path: Path
    """The file on the disk: itself, or the archive that it is in."""
    name: str
    """Its place in the folder or archive that was listed, with `/`; else its name."""
    inside: str
    """Its place in the archive; "" if it is a file on the disk."""
    size: int
    """Bytes that it takes, compressed as it is."""
    source: Callable[[], AbstractContextManager[IO[bytes]]] = field(repr=False, compare=False)
    """Opens its bytes as they are."""

    def __str__(self) -> str:
        return f"{self.inside} in {self.path}" if self.inside else str(self.path)

    @contextmanager
    def opened(self) -> Iterator[tuple[str, IO[bytes]]]:
        """(kind, bytes without compression). A tar's members are best opened in their order.

        Raises SourceError, also while reading, for a file that is cut off, damaged, encrypted, or
        an archive bomb.
        """
        with self.source() as source:
            yield _unpacked(source, str(self), self.size)

    def refused(self, kind: str) -> SourceError:
        """The error to raise for a kind that the reader has no use for."""
        if kind in TABLES and self.inside:
            return SourceError(f"{self} is {kind}, which is not read inside an archive: unpack it")
        if command := _UNPACKED_BY.get(kind):
            place = self.inside or self.path
            return SourceError(f"{self} is a {kind} archive: {command} {place} makes it readable")
        other = f"is a {kind} file, which is not read here: export it as JSON lines or parquet"
        return SourceError(
            f"{self} {_ADVICE.get(kind, other).format(path=self.inside or self.path)}"
        )


# Listing ------------------------------------------------------------------------------------------


def members(path: Path, password: str | None = None) -> Iterator[Member]:
    """The files of a folder, sorted, or of an archive, or the file itself.

    Archives in a folder are listed too. Hidden files and what macOS puts beside real ones (`._*`,
    `__MACOSX`) are left out. A member is opened only by `opened`. `password`: of an encrypted zip
    archive.

    Raises SourceError where there is no file, or an archive is cut off or damaged.
    """
    if path.is_file():
        yield from _of_file(path, path.name, password)
    elif path.is_dir():
        for folder, folders, files in os.walk(path):
            folders.sort()
            for file in sorted(files):
                place = Path(folder, file)
                name = place.relative_to(path).as_posix()
                if place.is_file() and not _is_litter(name):
                    yield from _of_file(place, name, password)
    elif path.exists():
        raise SourceError(f"{path.absolute()} is a device or a pipe: a file or folder is expected")
    else:
        raise SourceError(f"no file at {path.absolute()}")


def file_member(path: Path, name: str = "") -> Member:
    """A file on the disk, an archive or not, as one member."""
    return Member(path, name or path.name, "", path.stat().st_size, lambda: open_file(path, "rb"))


def _is_litter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _of_file(path: Path, name: str, password: str | None) -> Iterator[Member]:
    size = path.stat().st_size
    with open_file(path, "rb") as file:
        # Reading the beginning is enough: a cut file may still begin well.
        kind, stream = _unpacked(file, str(path), size)
        if kind == "tar":
            yield from _of_tar(path, name, stream, password)
            return
    if kind == "zip":
        yield from _of_zip(path, name, password)
    else:
        yield file_member(path, name)


def _of_zip(path: Path, name: str, password: str | None) -> Iterator[Member]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise cut(str(path), error) from None

    @contextmanager
    def source(info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
        place = f"{info.filename} in {path}"
        try:
            file = archive.open(info, pwd=password.encode() if password else None)
        except RuntimeError as error:
            if isinstance(error, NotImplementedError):
                raise SourceError(f"{place}: {error}: unpack it with 7z x {path}") from None
            advice = "the password is wrong" if password else f"unpack it with 7z x {path}"
            raise SourceError(f"{place} is encrypted: {advice}") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise cut(place, error) from None
        with file:
            yield file

    for info in archive.infolist():
        if not info.is_dir() and not _is_litter(info.filename):
            yield Member(
                path,
                f"{name}/{info.filename}",
                info.filename,
                info.compress_size,
                lambda info=info: source(info),  # type: ignore[misc]
            )


def _of_tar(path: Path, name: str, stream: IO[bytes], password: str | None) -> Iterator[Member]:
    at: list[tarfile.TarInfo | None] = [None]

    @contextmanager
    def source(info: tarfile.TarInfo) -> Iterator[IO[bytes]]:
        if info is at[0]:
            file = tar.extractfile(info)
            assert file is not None  # only regular files are listed
            with file:
                yield file
            return
        with closing(_of_file(path, name, password)) as again:  # type: ignore[type-var]
            for member in again:
                if member.inside == info.name:
                    with member.source() as file:
                        yield file
                    return

    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else memory grows with the files
                if info.isfile() and not _is_litter(info.name):
                    at[0] = info
                    place = f"{name}/{PurePosixPath(info.name)}"
                    yield Member(
                        path,
                        place,
                        info.name,
                        info.size,
                        lambda info=info: source(info),  # type: ignore[misc]
                    )
    except tarfile.TarError as error:
        raise cut(str(path), error) from None
    finally:
        at[0] = None


# Bytes --------------------------------------------------------------------------------------------


def cut(place: str, error: object) -> SourceError:
    """The error to raise for a file that ends too early, or cannot be decompressed or parsed."""
    return SourceError(f"{place} is cut off or damaged ({error}): fetch or make the file again")


def _unpacked(source: IO[bytes], place: str, size: int) -> tuple[str, IO[bytes]]:
    """The kind and the bytes of a file, without its layers of compression."""
    stream = source if type(source) is io.BufferedReader else _checked(source, place, size)
    for _ in range(_LAYERS):
        kind = kind_of(stream.peek(_HEAD)[:_HEAD])
        if kind not in _DECOMPRESSORS:
            return kind, stream
        stream = _checked(_DECOMPRESSORS[kind](stream), place, size)
    raise SourceError(f"{place} is compressed more than {_LAYERS} times: unpack it by hand")


def _checked(source: Any, place: str, size: int) -> io.BufferedReader:
    return io.BufferedReader(_Checked(source, place, size), 1 << 17)


class _Checked(io.RawIOBase):
    """Bytes whose errors name their file, and that end in one where they expand without limit."""

    def __init__(self, source: Any, place: str, size: int):
        self._source, self._place = source, place
        self._left = max(FREE_EXPANSION, EXPANSION * size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        try:
            while filled < len(buffer):  # so that a `peek` shows a whole buffer
                data = self._source.read(len(buffer) - filled)
                if not data:
                    break
                buffer[filled : filled + len(data)] = data
                filled += len(data)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise cut(self._place, error) from None
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            raise cut(self._place, error) from None
        self._left -= filled
        if self._left < 0:
            raise SourceError(
                f"{self._place} expands to more than {EXPANSION} times its size, as archive bombs "
                "do: if it is meant to, unpack it by hand and name what comes out"
            )
        return filled


class _Zstandard:
    """Zstandard frames, one after another. Raises EOFError where the last one is cut."""

    _READ = 512
    """Compressed bytes at a time, which may become 16 MB."""

    def __init__(self, file: IO[bytes]):
        self._file, self._rest = file, b""
        self._frame: Any = None
        self._ready = memoryview(b"")

    def read(self, size: int) -> bytes:
        import zstandard

        while not self._ready:
            data = self._rest or self._file.read(self._READ)
            if not data:
                if self._frame is not None:
                    raise EOFError("its last frame is incomplete")
                return b""
            if self._frame is None:
                unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
                self._frame = unpacker.decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from None
            self._rest = b""
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        piece, self._ready = self._ready[:size], self._ready[size:]
        return bytes(piece)


_DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": _Zstandard,
}
