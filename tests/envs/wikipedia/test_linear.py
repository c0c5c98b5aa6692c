"""What is read from files and agents takes time in proportion to its length, however hostile."""

import time

import pytest

from stepagent.envs.wikipedia import corpus, formats, wikitext
from stepagent.envs.wikipedia.env import _NAME, read_action
from stepagent.envs.wikipedia.score import normalize

READ = {
    "split_sentences": corpus.split_sentences,
    "lead": wikitext.lead,
    "disambiguation": wikitext._DISAMBIGUATION.search,
    "key": corpus.key,
    "base_key": lambda text: corpus.base_key(corpus.clean_title(text)),
    "next_part": corpus.next_part,
    "place": lambda text: formats._place("a text", corpus.clean_title(text)),
    "read_action": read_action,
    "names": _NAME.findall,
    "normalize": normalize,
}
UNITS = [
    ".", '."', ". ", "A. ", "a. b", "(", "( ", ") ", " ", "\t", "\n", "[", "[//", "[//a ", "[[",
    "[[a|", "[[File:a]]", "[[File:", "]]", "{{", "{{ ", "}}", "<ref>", "<ref ", "<ref a/", "</ref",
    "</ref ", "<a", "<!--", "''", "==", "&#9", "&", "search", "[a", "A of ", "of ", "a (part 2",
    "_", "é", "Á ", "the ",
]  # fmt: skip


def seconds(read, text):
    began = time.process_time()
    read(text)
    return time.process_time() - began


@pytest.mark.parametrize("name", READ)
def test_time_grows_in_proportion(name):
    read = READ[name]
    for unit in UNITS:
        for start, end in (("", ""), ("", "x"), ("[//", ""), ("(", "x"), ("<ref>", "")):
            short, long = (start + unit * (size // len(unit)) + end for size in (10_000, 40_000))
            if (taken := seconds(read, long)) < 0.05:
                continue
            times = [min(seconds(read, text) for _ in range(3)) for text in (short, long)]
            assert times[1] < 8 * times[0] + 0.02, (unit, start, end, taken)


def test_escapes_of_too_many_digits_stay():
    digits = "&#" + "9" * 5000 + ";"
    assert corpus.clean_title(digits) == digits
    assert corpus.key(digits)
    assert wikitext.lead(f"A {digits} b.") == [f"A {digits} b."]
    assert corpus.clean_title("A &amp; B") == "A & B"
