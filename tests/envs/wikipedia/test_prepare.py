"""A dump or a file of pages becomes a corpus, also after having been killed."""

import bz2
import io
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from stepagent import envs
from stepagent.envs.containers import members
from stepagent.envs.wikipedia import prepare
from stepagent.envs.wikipedia.sources import SourceError
from stepagent.envs.wikipedia.store import StoredCorpus
from stepagent.envs.wikipedia.wikitext import Redirect, dump_items, lead
from tests.envs.wikipedia.records import write_lines

PAGE = """  <page>
    <title>{title}</title><ns>{ns}</ns><id>{id}</id>{redirect}
    <revision><id>1</id><text bytes="9" xml:space="preserve">{text}</text></revision>
  </page>
"""
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11">
  <siteinfo><sitename>Wikipedia</sitename></siteinfo>
"""


def element(title, text, ns=0, redirect=""):
    redirect = f'<redirect title="{redirect}" />' if redirect else ""
    return PAGE.format(title=title, ns=ns, id=1, redirect=redirect, text=text)


def dump(path):
    """The items of a dump."""
    (member,) = members(path)
    with member.opened() as (_, file):
        yield from dump_items(member, file)


def write_dump(path, elements):
    data = (HEAD + "".join(elements) + "</mediawiki>").encode()
    path.write_bytes(bz2.compress(data) if path.suffix == ".bz2" else data)
    return path


ADA = """{{Short description|Writer}}
{{Infobox person
| name = Ada {{nowrap|[[King]]}}
}}
[[File:Ada.jpg|thumb|A [[portrait]] of [[Ada]]]]
'''Ada Lovelace''' ({{IPAc-en|x}}; born ''Byron'', 1815&amp;nbsp;– 1852) was a [[A|writer]].&lt;ref
name="a"&gt;{{cite web|url=x}}&lt;/ref&gt; She knew [[Charles Babbage]].&lt;ref name="b" /&gt;

She wrote a [https://example.org program].&lt;!-- really --&gt; H&lt;sub&gt;2&lt;/sub&gt;O.
* a list
{| class="wikitable"
| a table
|}
== Life ==
Not in the lead.
[[Category:Writers]]"""


def test_markup_is_taken_away(tmp_path):
    elements = [
        element("Ada Lovelace", ADA),
        element("Talk:Ada", "talk", ns=1),
        element("Countess", "#REDIRECT [[Ada Lovelace]]", redirect="Ada Lovelace"),
        element("Ada", "'''Ada''' may be:\n* x\n{{disambiguation}}"),
        element("Empty", "{{stub}}"),
    ]
    pages = list(dump(write_dump(tmp_path / "w.xml", elements)))
    assert pages[1:] == [None, Redirect("Countess", "Ada Lovelace"), None, None]
    assert pages[0].title == "Ada Lovelace"
    assert pages[0].paragraphs == [
        ["Ada Lovelace (born Byron, 1815 – 1852) was a writer.", "She knew Charles Babbage."],
        ["She wrote a program.", "H2O."],
    ]


@pytest.mark.parametrize(
    "markup", ["{{" * 50_000, "[[" * 50_000, "[[File:" * 20_000, "<ref>" * 50_000, "{|" * 50_000]
)
def test_broken_markup_is_quick(markup):
    began = time.process_time()
    lead(markup)
    assert time.process_time() - began < 5


def test_a_dump_becomes_a_corpus(tmp_path):
    elements = [element(f"Page {i}", f"'''Page {i}''' is number {i}. It is.") for i in range(50)]
    elements.append(element("The first", "#REDIRECT [[Page 0]]", redirect="Page 0"))
    path = write_dump(tmp_path / "w.xml.bz2", elements)
    corpus = prepare.prepare(path, tmp_path / "out")
    assert len(corpus) == 50
    assert corpus.find("the First").title == "Page 0"
    env = envs.make("stepagent/MuSiQue-v0", corpus=str(tmp_path / "out"))
    env.reset(seed=0)
    assert env.step("search[page 7]")[0] == "Page 7 is number 7. It is."
    assert "'Page 9'" in env.step("search[number 9]")[0]


def test_damaged_dumps_are_named(tmp_path):
    path = write_dump(tmp_path / "w.xml.bz2", [element(f"P{i}", "Text.") for i in range(2000)])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(SourceError, match=r"w\.xml\.bz2 is cut off or damaged"):
        list(dump(path))
    plain = tmp_path / "cut.xml"
    plain.write_text(HEAD + element("A", "Text."))
    with pytest.raises(SourceError, match="after 1 pages"):
        list(dump(plain))
    odd = tmp_path / "odd.xml"
    odd.write_text("<html></html>")
    with pytest.raises(SourceError, match="holds no page"):
        list(dump(odd))


def test_entities_are_not_expanded(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    path = tmp_path / "evil.xml"
    path.write_text(
        f'<!DOCTYPE m [<!ENTITY x SYSTEM "file://{secret}"><!ENTITY a "{"a" * 100}">]>'
        "<mediawiki><page><title>A</title><ns>0</ns><revision><text>Text &x; &a;.</text>"
        "</revision></page></mediawiki>"
    )
    texts = [item.text for item in dump(path) if item]
    assert "SECRET" not in str(texts)


def lines(tmp_path, count):
    records = [{"title": f"T{i // 2}", "text": f"Text {i} of it."} for i in range(count)]
    return write_lines(tmp_path / "pages.jsonl", records)


def test_passages_of_a_page_become_parts(tmp_path):
    corpus = prepare.prepare(lines(tmp_path, 5), tmp_path / "out", index=False)
    assert [p.title for p in corpus] == ["T0", "T0 (part 2)", "T1", "T1 (part 2)", "T2"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_killed_run_goes_on(tmp_path, monkeypatch, packed):
    source = lines(tmp_path, 3000)
    if packed:  # in two files, cut within the parts of a page
        records = source.read_text().splitlines(keepends=True)
        source = tmp_path / "pages.tar.bz2"
        with tarfile.open(source, "w:bz2") as archive:
            for number, part in enumerate((records[:999], records[999:])):
                data = bz2.compress("".join(part).encode())
                info = tarfile.TarInfo(f"AA/wiki_0{number}.bz2")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    complete = prepare.prepare(source, tmp_path / "whole", index=False)
    code = (
        "import sys, os, signal\n"
        "from pathlib import Path\n"
        "from stepagent.envs.wikipedia import prepare, store\n"
        "prepare.SAVE_EVERY = 1000\n"
        "add, store.Writer.count_ = store.Writer.add, 0\n"
        "def dying(self, page):\n"
        "    if self.count == 1700: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    add(self, page)\n"
        "store.Writer.add = dying\n"
        "prepare.prepare(Path(sys.argv[1]), Path(sys.argv[2]), index=False)\n"
    )
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", code, str(source), str(out)])
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "corpus.json").exists()
    seen = []
    add = prepare.Writer.add
    monkeypatch.setattr(prepare.Writer, "add", lambda s, p: (seen.append(p), add(s, p)))
    resumed = prepare.prepare(source, out, index=False)
    assert len(seen) == 2000  # what was saved is not read into the corpus again
    assert resumed.checksum() == complete.checksum()
    assert list(resumed) == list(complete)


def test_another_source_is_refused(tmp_path):
    out = tmp_path / "out"
    writer = prepare.Writer(out)
    writer.save(records=5, source="other.jsonl", size=3)
    writer.close()
    with pytest.raises(SourceError, match=r"begun with 'other\.jsonl'"):
        prepare.prepare(lines(tmp_path, 3), out, index=False)


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "envs.wikipedia.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))


def test_the_command(tmp_path):
    source = lines(tmp_path, 30)
    done = run(source, "--out", tmp_path / "out", "--limit", 20)
    assert done.returncode == 0, done.stderr
    assert "20 pages in" in done.stdout
    assert "index ready" in done.stdout
    assert len(StoredCorpus(tmp_path / "out")) == 20
    missing = run(tmp_path / "nowhere.xml", "--out", tmp_path / "none")
    assert missing.returncode == 2
    assert "nowhere.xml" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert "gzip or bzip2" in " ".join(run("--help").stdout.split())
