"""Makes a corpus from a Wikipedia dump or any file of pages: `stepagent wikipedia-corpus`.

    stepagent wikipedia-corpus enwiki-…-pages-articles.xml.bz2 --out corpora/enwiki

The source is read as a stream; a stopped run (Ctrl-C, kill, full disk) resumes with the same
command. The folder is then an environment's corpus: `--env-args.corpus corpora/enwiki`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from rich.console import Console

from stepagent.command_line import Command
from stepagent.envs.containers import SourceError
from stepagent.envs.wikipedia import sources
from stepagent.envs.wikipedia.corpus import Page, part_title
from stepagent.envs.wikipedia.store import StoredCorpus, Writer, is_store
from stepagent.envs.wikipedia.wikitext import Redirect, dump_items
from stepagent.errors import check_range

SAVE_EVERY = 20_000
"""Records between two points from which a stopped run can resume."""


@dataclass
class Config:
    """Makes a corpus folder from a Wikipedia dump, or from pages: JSON lines or a JSON list with
    title and text, a JSON object of title: sentences, tab-separated columns with a header, parquet
    or arrow. Files may be compressed with gzip or bzip2 (or xz, zstd), and be in a folder or in a
    zip or tar archive."""

    source: Path
    """The dump, or the file, archive or folder of pages."""
    out: Path
    """Folder for the corpus. It is created, or completed if an earlier run was stopped."""
    limit: int | None = None
    """Maximum number of records read from the source. null: all."""
    index: bool = True
    """Also build the search index, in $STEPAGENT_CACHE. Otherwise the first search builds it."""


def prepare(
    source: Path,
    out: Path,
    *,
    limit: int | None = None,
    index: bool = True,
    console: Console | None = None,
) -> StoredCorpus:
    """Makes (or completes) the corpus folder `out` and opens it.

    Raises SourceError if the source is missing, truncated or of unknown format, or if `out` lies
    inside it or was started with another source.
    """
    check_range(1, limit=limit)
    console = console or Console(quiet=True)
    if source.resolve() in out.resolve().parents:
        raise SourceError(f"{out} lies inside {source}: choose an --out outside of it")
    if not is_store(out):
        _write(source, out, limit, console)
    corpus = StoredCorpus(out)
    if index:
        console.print(f"building the search index of {len(corpus):,} pages …")
        start = time.monotonic()
        assert len(corpus.index) == len(corpus)
        console.print(f"index ready after {time.monotonic() - start:.0f} s")
    return corpus


def _write(source: Path, out: Path, limit: int | None, console: Console) -> None:
    files = [source] if source.is_file() else source.rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    mark = {"source": source.name, "size": size}
    with closing(Writer(out)) as writer:
        done = int(writer.saved.get("records", 0))
        if writer.saved and {k: writer.saved.get(k) for k in mark} != mark:
            raise SourceError(
                f"{out} was begun with {writer.saved.get('source')!r} of "
                f"{writer.saved.get('size')} bytes, not with {source}: choose another --out"
            )
        if done:
            console.print(f"going on after {done:,} records, {writer.count:,} pages")
        start, number = time.monotonic(), done
        for number, item in enumerate(_items(source, done, limit), done + 1):
            if isinstance(item, Redirect):
                writer.redirect(item.title, item.target)
            elif item is not None and item.text:
                writer.add(item)
            if number % SAVE_EVERY == 0:
                writer.save(records=number, **mark)
                rate = (number - done) / max(time.monotonic() - start, 1e-9)
                console.print(f"{number:,} records, {writer.count:,} pages, {rate:,.0f} records/s")
        console.print(f"{number:,} records read, {writer.count:,} pages kept")
        writer.save(records=number, **mark)
        writer.finish()


def _items(source: Path, skip: int, limit: int | None) -> Iterator[Page | Redirect | None]:
    """The source's records from number `skip` on, one item each; repeated titles become parts."""
    return islice(_all_items(source, skip), skip, limit)


def _all_items(source: Path, skip: int) -> Iterator[Page | Redirect | None]:
    """All of them; of a dump, the first `skip` are None, which saves parsing them."""
    read, last, part = 0, "", 0
    for member, kind, file in sources.opened_data(source):
        if kind == "MediaWiki dump" or ".xml" in PurePosixPath(member.name).suffixes:
            for item in dump_items(member, file, skip - read):
                read += 1
                yield item
            continue
        for page in sources.pages_in(member, kind, file):
            read += 1
            # Files of short passages have several of a page, one after the other.
            part = part + 1 if page.title == last else 1
            last = page.title
            yield Page(part_title(page.title, part), page.text)


def run(config: Config) -> int:
    console = Console(highlight=False)
    corpus = prepare(
        config.source, config.out, limit=config.limit, index=config.index, console=console
    )
    console.print(f"{len(corpus):,} pages in {config.out}")
    return 0


main = Command("wikipedia-corpus", Config, run, positional="source", resumes=True)


if __name__ == "__main__":
    sys.exit(main())
