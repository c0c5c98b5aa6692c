"""Files are what their first bytes say, are read in flat memory, and fail with their name."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
import zipfile

import pytest
import zstandard

from stepagent.envs import containers
from stepagent.envs.containers import SourceError, members

PACK = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
TEXT = "".join(f'{{"number": {i}}}\n' for i in range(3000)).encode()


def contents(path, password=None):
    """Name → (kind, bytes) of all that is in it."""
    result = {}
    for member in members(path, password):
        with member.opened() as (kind, stream):
            result[member.name] = (kind, stream.read())
    return result


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", PACK)
def test_compression_is_recognised_whatever_the_name(tmp_path, kind):
    path = tmp_path / "file.json"
    path.write_bytes(PACK[kind](TEXT))
    assert contents(path) == {"file.json": ("text", TEXT)}
    path.write_bytes(PACK[kind](PACK["gzip"](TEXT)))
    assert contents(path) == {"file.json": ("text", TEXT)}
    path.write_bytes(PACK[kind](TEXT[:5000]) + PACK[kind](TEXT[5000:]))  # streams joined
    assert contents(path) == {"file.json": ("text", TEXT)}


def test_a_plain_file_under_a_compressed_name_is_read(tmp_path):
    path = tmp_path / "file.json.gz"
    path.write_bytes(TEXT)
    assert contents(path) == {"file.json.gz": ("text", TEXT)}


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("cut", [0.3, 0.99])
def test_cut_files_are_named(tmp_path, kind, cut):
    path = tmp_path / "cut.json"
    data = PACK[kind](os.urandom(100_000))
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(SourceError, match=r"cut\.json is cut off or damaged \(.*\): fetch"):
        contents(path)


FILES = {
    "data/a.json": b"[1]",
    "data/b.json.bz2": bz2.compress(b"[2]"),
    "__MACOSX/data/._a.json": b"\x00\x05\x16\x07",
    "data/.DS_Store": b"\0",
}


def test_archives_and_folders_list_their_files_without_litter(tmp_path):
    archives = [
        write_zip(tmp_path / "x.zip", FILES),
        write_tar(tmp_path / "x.tar", FILES),
        write_tar(tmp_path / "x.tar.bz2", FILES, "w:bz2"),
        write_tar(tmp_path / "x.tgz", FILES, "w:gz"),
    ]
    zst = tmp_path / "x.tar.zst"
    zst.write_bytes(PACK["zstd"](archives[1].read_bytes()))
    for archive in (*archives, zst):
        assert contents(archive) == {
            f"{archive.name}/data/a.json": ("text", b"[1]"),
            f"{archive.name}/data/b.json.bz2": ("text", b"[2]"),
        }
        listed = list(members(archive))  # opened after the listing, in another order
        for member, data in zip(listed[::-1], (b"[2]", b"[1]"), strict=True):
            with member.opened() as (_, stream):
                assert stream.read() == data
        assert str(listed[0]) == f"data/a.json in {archive}"
    folder = tmp_path / "folder"
    for name, data in {**FILES, "z.zip": archives[0].read_bytes()}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    names = ["z.zip/data/a.json", "z.zip/data/b.json.bz2", "data/a.json", "data/b.json.bz2"]
    assert list(contents(folder)) == names


def test_damaged_archives_are_named(tmp_path):
    data = {"a": os.urandom(50_000), "b": os.urandom(50_000)}
    for path in (write_zip(tmp_path / "a.zip", data), write_tar(tmp_path / "a.tar", data)):
        path.write_bytes(path.read_bytes()[:-60_000])
        with pytest.raises(SourceError, match=rf"{path.name} is cut off or damaged"):
            contents(path)
    path = write_zip(tmp_path / "b.zip", data)
    damaged = bytearray(path.read_bytes())
    damaged[1000:1100] = bytes(100)
    path.write_bytes(damaged)
    with pytest.raises(SourceError, match=r"a in .*b\.zip is cut off or damaged"):
        contents(path)


def test_encrypted_archives_say_so(tmp_path):
    path = write_zip(tmp_path / "e.zip", {"a.json": b"[1]"})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flags in the local header and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.json in .*e\.zip is encrypted: unpack it with 7z"):
        contents(path)
    with pytest.raises(SourceError, match="password is wrong"):
        contents(path, "secret")


KINDS = {
    "7z": (b"7z\xbc\xaf\x27\x1c", "7z x"),
    "rar": (b"Rar!\x1a\x07\x01", "unrar x"),
    "lz4": (b"\x04\x22\x4d\x18", "lz4 -d"),
    "SQLite": (b"SQLite format 3\0", "sqlite3 -json"),
    "pickle": (b"\x80\x04\x95", "export it as JSON lines"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><title>404</title>", "raw or download link"),
    "AppleDouble": (b"\x00\x05\x16\x07\x00", "without `._`"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "export it as JSON lines or parquet"),
    "binary": (b"a\0b\0", "iconv -f utf-16le"),
    "empty": (b"", "is empty: fetch"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_read_says_which_command_makes_it_readable(tmp_path, kind):
    head, command = KINDS[kind]
    path = tmp_path / "file.json"
    path.write_bytes(head)
    (member,) = members(path)
    with member.opened() as (what, _):
        assert what == kind
        error = str(member.refused(what))
    assert str(path) in error
    assert command in error


def test_an_archive_in_an_archive_says_which_command_opens_it(tmp_path):
    inner = write_zip(tmp_path / "inner.zip", FILES).read_bytes()
    (member,) = members(write_zip(tmp_path / "outer.zip", {"inner.zip": inner}))
    with member.opened() as (kind, _):
        assert "unzip inner.zip" in str(member.refused(kind))


def test_missing_files_and_pipes_are_named(tmp_path):
    with pytest.raises(SourceError, match=r"no file at .*nowhere"):
        list(members(tmp_path / "nowhere"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe is a device or a pipe"):
        list(members(tmp_path / "pipe"))


def read_through(path):
    for member in members(path):
        with member.opened() as (_, stream):
            while stream.read(1 << 16):
                pass


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd", "zip"])
def test_archive_bombs_end_in_an_error_and_in_flat_memory(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(containers, "FREE_EXPANSION", 1 << 20)
    path = tmp_path / "bomb"
    data = bytes(64 << 20)
    if kind == "zip":
        write_zip(path, {"a": data})
    else:
        path.write_bytes(PACK[kind](data))
    del data
    tracemalloc.start()
    with pytest.raises(SourceError, match="expands to more than 300 times its size"):
        read_through(path)
    assert tracemalloc.get_traced_memory()[1] < 48 << 20
    tracemalloc.stop()


def test_compression_once_too_often(tmp_path):
    data = b"[1]"
    for _ in range(6):
        data = gzip.compress(data)
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(SourceError, match="compressed more than 4 times"):
        list(members(tmp_path / "a"))
