"""Full-text search as Lucene does it: `analysis` of text, `build` and `index` of a BM25 index."""

from stepagent.envs.search.analysis import analyse
from stepagent.envs.search.index import Index

__all__ = ["Index", "analyse"]
