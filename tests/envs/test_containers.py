"""A file is what its first bytes say, whatever its name ends in."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest
import zstandard

from stepagent.envs.containers import ContainerError, names_in_zip, open_bytes, walk

TEXT = b'{"a": 1}\n' * 1000
PACKERS = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
    "gzip, two parts": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
    "zstd, two parts": lambda data: zstandard.compress(data[:9]) + zstandard.compress(data[9:]),
}
FILES = {"data/a.json": TEXT, "data/b.txt": b"no", "__MACOSX/data/._a.json": b"\x00\x05\x16\x07"}
FILES |= {"data/._a.json": b"\x00\x05\x16\x07", "data/.DS_Store": b"\x00\x00"}


def tarball(files, pack=bytes):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return pack(out.getvalue())


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", ["data.json", "data.json.gz", "data"])
def test_compression_is_recognised_whatever_the_name(tmp_path, packer, name):
    (tmp_path / name).write_bytes(PACKERS[packer](TEXT))
    with open_bytes(tmp_path / name) as file:
        assert file.read() == TEXT


@pytest.mark.parametrize("pack", ["zip", *PACKERS])
def test_archives_are_walked_without_what_macos_adds(tmp_path, pack):
    path = tmp_path / "download"
    path.write_bytes(zipped(FILES) if pack == "zip" else tarball(FILES, PACKERS[pack]))
    files = {name: f.read() for name, f in walk(path, lambda name: name.endswith(".json"))}
    assert files == {"data/a.json": TEXT}


def test_a_folder_and_a_file_are_walked_alike(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "data" / "c.json").write_bytes(gzip.compress(b"[]"))
    files = {name: f.read() for name, f in walk(tmp_path, lambda name: name.endswith(".json"))}
    assert files == {"data/a.json": TEXT, "data/c.json": b"[]"}
    one = tmp_path / "data" / "a.json"
    assert [(name, f.read()) for name, f in walk(one, lambda _: True)] == [("a.json", TEXT)]
    (tmp_path / "x.zip").write_bytes(zipped(FILES))
    assert names_in_zip(tmp_path / "x.zip") == ["data/a.json", "data/b.txt"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><title>Sign in</title>", "web page"),
        (b"PAR1....", "duckdb"),
        (b"ARROW1..", "load_from_disk"),
        (b"7z\xbc\xaf\x27\x1c", "7z x"),
        (b"Rar!\x1a", "unrar"),
        (b"\x80\x04\x95", "pickle"),
        (b"\x00\x05\x16\x07", "macOS"),
        (zipped(FILES), "unzip"),
        (tarball(FILES), "tar xf"),
    ],
)
def test_what_cannot_be_read_says_what_makes_it_readable(tmp_path, data, says):
    (tmp_path / "data.json").write_bytes(data)
    with pytest.raises(ContainerError, match=says) as caught, open_bytes(tmp_path / "data.json"):
        pass
    assert str(tmp_path / "data.json") in str(caught.value)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("packer", ["gzip", "bzip2", "xz", "zstd"])
def test_a_cut_file_is_named(tmp_path, packer):
    path = tmp_path / "data.json"
    path.write_bytes(PACKERS[packer](bytes(range(256)) * 50)[:-20])
    with pytest.raises(ContainerError, match=r"data\.json is cut"), open_bytes(path) as file:
        file.read()


@pytest.mark.parametrize("data", [tarball(FILES)[:5000], zipped(FILES)[:-40]])
def test_a_cut_archive_is_named(tmp_path, data):
    (tmp_path / "data.tar").write_bytes(data)
    with pytest.raises(ContainerError, match=r"data\.tar is cut"):
        [file.read() for _, file in walk(tmp_path / "data.tar", lambda _: True)]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ContainerError, match=r"nowhere\.json cannot be read"):
        list(walk(tmp_path / "nowhere.json", lambda _: True))
