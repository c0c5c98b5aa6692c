"""Rows of parquet and arrow files."""

import pytest

from stepagent.envs import containers
from stepagent.envs.containers import SourceError, members
from stepagent.envs.tables import rows
from tests.envs.test_containers import write_zip

ROWS = [{"id": i, "title": f"T{i}", "nested": {"a": [[f"é{i}"]]}} for i in range(700)]


def write_table(path, records, kind):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import feather, ipc, parquet

    table = pyarrow.Table.from_pylist(records)
    if kind == "parquet":
        parquet.write_table(table, path)
    elif kind == "arrow":
        feather.write_feather(table, str(path))
    else:
        with ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=300)
    return path


@pytest.mark.parametrize("kind", containers.TABLES)
def test_tables(tmp_path, kind):
    path = write_table(tmp_path / "file.json", ROWS, kind)
    (member,) = members(path)
    with member.opened() as (what, _):
        assert what == kind
    assert list(rows(path, kind)) == ROWS
    assert list(rows(path, kind, ["title", "absent"])) == [{"title": r["title"]} for r in ROWS]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"file\.json is cut off or damaged"):
        list(rows(path, kind))


def test_a_table_in_an_archive_is_to_be_unpacked(tmp_path):
    data = write_table(tmp_path / "a.parquet", ROWS, "parquet").read_bytes()
    (member,) = members(write_zip(tmp_path / "a.zip", {"a.parquet": data}))
    with member.opened() as (kind, _):
        assert "not read inside an archive: unpack it" in str(member.refused(kind))


def test_without_pyarrow_the_command_is_named(tmp_path, monkeypatch):
    path = write_table(tmp_path / "a.parquet", ROWS, "parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'stepagent\[parquet\]'"):
        list(rows(path, "parquet"))
