"""Multi-hop questions over Wikipedia: HotpotQA, 2WikiMultihopQA and MuSiQue.

One search environment (`env.py`) over one kind of corpus (`corpus.py`) with three sets of questions
(`data.py`), or with the bundled world of invented pages (`world.py`), which needs no download.
"""
