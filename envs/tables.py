"""Rows of parquet and arrow files, in flat memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from stepagent.envs.containers import SourceError, cut
from stepagent.optional import missing

BATCH = 256
"""Rows that are in memory at once."""


def rows(path: Path, kind: str, columns: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a file of one of `TABLES`, read a batch at a time.

    Parameters
    ----------
    path, kind: the file, on the disk, and what `Member.opened` says that it is.
    columns: only those of them that the file has; none of them: all columns.

    Raises SourceError for a cut or damaged file, and MissingPackage without pyarrow.
    """
    try:
        import pyarrow
    except ImportError:
        raise missing("pyarrow", f"reading {path} ({kind})") from None
    read = _parquet if kind == "parquet" else _arrow
    try:
        for batch in read(path, kind, columns):
            for start in range(0, batch.num_rows, BATCH):
                yield from batch.slice(start, BATCH).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise cut(str(path), str(error).split("\n")[0]) from None
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} holds text that is not UTF-8 ({error}): write it anew") from None


def _parquet(path: Path, kind: str, columns: Collection[str]) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    # Without `buffer_size` the whole column of a row group is in memory.
    with ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        names = [name for name in file.schema_arrow.names if name in columns]
        yield from file.iter_batches(BATCH, columns=names or None, use_threads=False)


def _arrow(path: Path, kind: str, columns: Collection[str]) -> Iterator[Any]:
    import pyarrow
    from pyarrow import ipc

    with pyarrow.memory_map(str(path)) as source:
        reader = ipc.open_file(source) if kind == "arrow" else ipc.open_stream(source)
        names = [name for name in reader.schema.names if name in columns]
        numbers = range(reader.num_record_batches) if kind == "arrow" else None
        batches = map(reader.get_batch, numbers) if numbers is not None else reader
        for batch in batches:
            batch.validate(full=True)  # damaged offsets would end the process
            yield batch.select(names) if names else batch
