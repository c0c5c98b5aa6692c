"""The bundled encyclopedia: some 2,400 invented pages, and multi-hop questions on them.

`facts.py` draws people, places, works, companies and events that fit together, `wording.py` writes
their pages, `questions.py` asks about them in the style of the three data sets, `names.py` has the
words. Everything follows from one seed: the same pages and questions in every process.
"""

CHECKSUM = "ec9201d5f3f572fc"
"""Stands for pages and questions in fingerprints and in the cache; a test says when to renew it."""
