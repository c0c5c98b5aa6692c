"""Multi-hop questions over Wikipedia: HotpotQA, 2WikiMultihopQA and MuSiQue.

One search environment (`env.py`) over one kind of corpus (`corpus.py`) with three sets of questions
(`data.py`), or with a bundled encyclopedia of invented pages (`encyclopedia/`), which needs no
download.
"""
