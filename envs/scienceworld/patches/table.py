"""What the changed classes share: the table of a simulator's Java thread, names of classes."""

from __future__ import annotations

SEPARATOR = "\x1f"
"""Between the parts of what `load$all`, `step$all` and `start$all` return."""

RANDOM, COUNTER, SIMPLIFICATIONS, WORDS, PLAIN_WORDS, NAMES, PLAIN_NAMES = range(7)
MAKER, MODE, IDS, SEED = range(7, 11)
TABLE_SIZE = 11
"""Places in a simulator thread's `Object[]`. `WORDS` and `PLAIN_WORDS`: from a text to its words,
as an array and joined, without articles, kept until there are `MOST_WORDS`. `NAMES` and
`PLAIN_NAMES`: from an object to its names, kept for an action. The last four are a
`taskmaker.Turn`."""

MOST_WORDS = 2000
"""Texts in one of these maps; the paper's tasks have some hundreds each."""

OBJECT = "scienceworld/struct/EnvObject"
PORTAL = "scienceworld/objects/portal/Portal"
SET = "scala/collection/immutable/Set"
MUTABLE_SET = "scala/collection/mutable/Set"
MAP = "java/util/HashMap"
STRING, STRINGS = "java/lang/String", "[Ljava/lang/String;"
ITEMS = "[Ljava/lang/Object;"
ADD_ALL = "(Lscala/collection/TraversableOnce;)Lscala/collection/generic/Growable;"
GET = f"invokevirtual {MAP}.get (Ljava/lang/Object;)Ljava/lang/Object;"
PUT = f"invokevirtual {MAP}.put (Ljava/lang/Object;Ljava/lang/Object;)Ljava/lang/Object;\npop"
TABLE = f"""
    invokestatic java/lang/System.getProperties ()Ljava/util/Properties;
    invokestatic java/lang/Thread.currentThread ()Ljava/lang/Thread;
    invokevirtual java/util/Properties.get (Ljava/lang/Object;)Ljava/lang/Object;
    checkcast {ITEMS}
"""
"""Pushes the current thread's `Object[]`."""


def own(place: int, kind: str) -> str:
    """Assembly that pushes what is at `place` there."""
    return f"{TABLE}\niconst {place}\naaload\ncheckcast {kind}"
