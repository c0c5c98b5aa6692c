"""The naive way: `generate` on the entire conversation at every turn.

For models whose cache cannot be kept in slots (`agents.generation.why_uncacheable`), and as the
reference that the key-value cache is tested and measured against.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from stepagent.agents.generation import Counts, Decoding, Request


class NaiveGenerator:
    """Answers prompts by `model.generate`, padded on the left to one length."""

    def __init__(
        self,
        model: Any,
        *,
        ends: frozenset[int],
        stops: Sequence[str],
        tokenizer: Any,
        batch_size: int = 16,
    ):
        self.model, self.ends, self.stops, self.tokenizer = model, ends, list(stops), tokenizer
        self.batch_size = batch_size
        self.counts = Counts()

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[int]]:
        """The ids of each request's reply, in order. Sampling does one request at a time."""
        size = self.batch_size if decoding.temperature == 0 else 1
        replies: list[list[int]] = []
        for i in range(0, len(requests), size):
            replies += self._batch(requests[i : i + size], decoding)
        return replies

    def _batch(self, requests: Sequence[Request], decoding: Decoding) -> list[list[int]]:
        device = self.model.get_input_embeddings().weight.device
        width = max(len(request.ids) for request in requests)
        pad = min(self.ends)  # follows a reply that a stop text ended
        ids = torch.full((len(requests), width), pad)
        real = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request.ids) :] = torch.tensor(request.ids)
            real[row, width - len(request.ids) :] = 1
        sampling: dict[str, Any] = {
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "top_k": None,
        }
        if decoding.temperature:
            sampling = {
                "do_sample": True,
                "temperature": decoding.temperature,
                "top_p": decoding.top_p,
                "top_k": 0,
            }
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if decoding.temperature:
                torch.manual_seed(int(requests[0].rng.integers(2**62)))
            out = self.model.generate(
                input_ids=ids.to(device),
                attention_mask=real.to(device),
                use_cache=True,
                max_new_tokens=decoding.max_new_tokens,
                eos_token_id=sorted(self.ends),
                pad_token_id=pad,
                stop_strings=list(self.stops) or None,
                tokenizer=self.tokenizer,
                repetition_penalty=1.0,
                **sampling,
            )
        replies = [self._trim(row) for row in out[:, width:].tolist()]
        self.counts.read += sum(len(request.ids) for request in requests)
        self.counts.generated += sum(map(len, replies))
        return replies

    def _trim(self, ids: list[int]) -> list[int]:
        """The reply up to and including its first end token; padding follows it."""
        ends = [i for i, token in enumerate(ids) if token in self.ends]
        return ids[: ends[0] + 1] if ends else ids

    def forget(self, key: Hashable) -> None:
        """Does nothing: there is no cache."""

    def clear(self) -> None:
        """Does nothing: there is no cache."""
