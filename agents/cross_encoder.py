"""A cross-encoder that ranks a page's candidates, as MindAct's first stage does.

For `stepagent/Mind2Web-v0`: `ranker="stepagent.agents.cross_encoder:CrossEncoder"` with
`ranker_args={"model": PATH}`. Any sequence classifier of Hugging Face works; MindAct's was a
DeBERTa-v3-base trained on the benchmark's train split. Task and history are the first text,
the candidate is the second; the score is the classifier's only logit, or its last one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from stepagent.envs.mind2web.rank import Ranker


class CrossEncoder(Ranker):
    """Scores (task and history, candidate) pairs with a sequence classifier.

    Parameters
    ----------
    model: directory that `save_pretrained` wrote, or a hub id; safetensors only.
    batch_size: pairs per forward pass.
    max_length: tokens of a pair; longer ones are truncated.
    dtype, device: as in `agents.models`.

    Raises `agents.models.ModelError` if the model cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        *,
        batch_size: int = 32,
        max_length: int = 256,
        dtype: str = "auto",
        device: str = "auto",
    ):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from stepagent.agents import models

        if batch_size < 1 or max_length < 8:
            raise ValueError(
                f"batch_size {batch_size} must be at least 1, max_length {max_length} at least 8"
            )
        self.batch_size, self.max_length = batch_size, max_length
        with models.quiet():
            try:
                loaded = AutoModelForSequenceClassification.from_pretrained(
                    model,
                    dtype=models.pick_dtype(dtype, device),
                    use_safetensors=True,
                    trust_remote_code=False,
                )
                self._tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            except (OSError, ValueError) as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise models.ModelError(
                    f"cannot load cross-encoder {model!r}: {lines[0]}"
                ) from error
        self._model: Any = loaded.to(models.pick_device(device)).eval()
        self._lock = threading.Lock()

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        import torch

        scores: list[float] = []
        with self._lock, torch.inference_mode():  # tokenizers are not thread-safe
            for first in range(0, len(texts), self.batch_size):
                batch = list(texts[first : first + self.batch_size])
                encoded = self._tokenizer(
                    [query] * len(batch),
                    batch,
                    truncation=True,
                    max_length=self.max_length,
                    padding=True,
                    return_tensors="pt",
                ).to(self._model.device)
                scores += self._model(**encoded).logits[:, -1].float().tolist()
        return scores
