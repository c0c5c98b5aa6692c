"""Pre-trains a small language model on what the environments say: `stepagent pretrain`.

corpus.py     walks through the environments and their pages, as documents
tokens.py     documents as one row of tokens
induction.py  weights at which the model copies
optimise.py   next-token prediction, resumable
measure.py    what the model can do: copying, and predicting the next observation
card.py       its model card
"""
