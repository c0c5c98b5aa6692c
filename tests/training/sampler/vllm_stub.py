"""A server that speaks as much of vLLM's API as the trainer uses, over a model of a few thousand
weights. What it answers, errors too, is what vLLM 0.32 answers."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import torch

from stepagent.agents.generation import Decoding, choose
from stepagent.agents.models import ModelError, load_model, load_tokenizer
from tests.servers import Scripted

NOT_FOUND = (404, b'{"detail":"Not Found"}')
_LOADING = threading.Lock()
"""Models load one after another: transformers cannot load two at once."""


class VllmStub(Scripted):
    """Serves the model in a directory."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.max_model_len, self.max_lora_rank = 512, 16
        self.takes_adapters = self.takes_weights = True
        self.dies_after = -1
        """Replies until it dies; -1: it does not."""
        self._model = threading.Lock()
        self.serve(base)

    def serve(self, base: Path) -> None:
        """Starts anew with the model in another directory."""
        self.base, self.tokenizer, self._first = base, load_tokenizer(base), _load(base)
        self.restart()

    def restart(self) -> None:
        """As after a kill: the weights that it was started with, and no adapter."""
        self.adapters: dict[str, tuple[str, Any]] = {}
        self.weights, self.version = self._first, "default"
        self.is_dead, self.is_paused = False, False

    def calls(self, path: str) -> list[Any]:
        """The bodies of the requests to an address."""
        return [body for seen, body in self.seen if seen == path]

    def read(self, path: str, body: bytes) -> tuple[str, Any]:
        return path.partition("?")[0], json.loads(body) if body else None

    def answer(self, request: tuple[str, Any]) -> bytes | tuple[int, bytes]:
        path, body = request
        if self.is_dead:
            return 502, b""  # as a proxy before it says
        with self._model:
            handler = getattr(self, f"on_{path.strip('/').replace('/', '_')}", None)
            if handler is None:
                return NOT_FOUND
            status, answer = handler(body)
        return status, answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def on_v1_models(self, body: Any) -> tuple[int, Any]:
        base = {"id": str(self.base), "parent": None, "max_model_len": self.max_model_len}
        adapters = [
            {"id": name, "root": path, "parent": str(self.base)}
            for name, (path, _) in self.adapters.items()
        ]
        return 200, {"data": [base, *adapters]}

    def on_v1_load_lora_adapter(self, body: Any) -> tuple[int, Any]:
        if not self.takes_adapters:
            return NOT_FOUND
        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not path.is_dir():
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads((path / "adapter_config.json").read_text())["r"]
        if rank > self.max_lora_rank:
            text = f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
            return _error(500, text)
        self.adapters[name] = str(path), _load(path)
        return 200, b"Success"

    def on_v1_unload_lora_adapter(self, body: Any) -> tuple[int, Any]:
        found = self.adapters.pop(body["lora_name"], None)
        return (200, b"Success") if found else _error(404, "cannot be found")

    def on_weight_info(self, body: Any) -> tuple[int, Any]:
        return (200, {"weight_version": self.version}) if self.takes_weights else NOT_FOUND

    def on_pause(self, body: Any) -> tuple[int, Any]:
        self.is_paused = True
        return 200, {"status": "paused"}

    def on_resume(self, body: Any) -> tuple[int, Any]:
        self.is_paused = False
        return 200, {"status": "resumed"}

    def on_collective_rpc(self, body: Any) -> tuple[int, Any]:
        assert body["method"] == "reload_weights"
        try:
            self.weights = _load(body["kwargs"]["weights_path"])
        except ModelError as error:
            return _error(500, f"Call to collective_rpc method failed: {error}")
        return 200, {"results": [None]}

    def on_reset_prefix_cache(self, body: Any) -> tuple[int, Any]:
        return 200, {"success": True}

    def on_update_weight_version(self, body: Any) -> tuple[int, Any]:
        self.version = body["new_version"]
        return 200, {"success": True}

    def on_inference_v1_generate(self, body: Any) -> tuple[int, Any]:
        self.dies_after -= 1
        if self.dies_after == 0:
            self.restart()
            self.is_dead = True
            return 502, b""
        name = body.get("model")
        if name and name not in self.adapters:
            return _error(404, f"The model `{name}` does not exist.")
        ids, parameters = body["token_ids"], body["sampling_params"]
        if len(ids) + parameters["max_tokens"] > self.max_model_len:
            return _error(400, "longer than the maximum model length")
        model = self.adapters[name][1] if name else self.weights
        reply = self._reply(model, ids, parameters)
        span = {"version": self.version, "start": 0, "end": len(reply)}
        choice = {"token_ids": reply, "finish_reason": "stop", "weight_versions": [span]}
        rows = self._log_probs(model, ids) if "prompt_logprobs" in parameters else None
        return 200, {
            "model": name or str(self.base),
            "choices": [choice],
            "prompt_logprobs": rows,
            "usage": {"prompt_tokens_details": None},
        }

    @torch.no_grad()
    def _reply(self, model: Any, prompt: list[int], parameters: dict[str, Any]) -> list[int]:
        decoding = Decoding(parameters["temperature"], parameters.get("top_p", 1.0))
        generator = torch.Generator().manual_seed(parameters.get("seed", 0) % 2**63)
        reply: list[int] = []
        while len(reply) < parameters["max_tokens"]:
            logits = model(torch.tensor([prompt + reply])).logits[:, -1].float()
            draw = float(torch.rand((), generator=generator, dtype=torch.float64))
            reply += choose(logits, decoding, [draw])
            text = self.tokenizer.decode(reply, skip_special_tokens=True)
            if reply[-1] in parameters.get("stop_token_ids", ()) or any(
                stop in text for stop in parameters.get("stop", ())
            ):
                break
        return reply

    @torch.no_grad()
    def _log_probs(self, model: Any, prompt: list[int]) -> list[Any]:
        table = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
        pairs = enumerate(prompt[1:])
        return [None, *({str(t): {"logprob": float(table[i, t])}} for i, t in pairs)]


def _load(path: Path | str) -> Any:
    with _LOADING:
        return load_model(path, "float32", "cpu")


def _error(status: int, text: str) -> tuple[int, Any]:
    return status, {"error": {"message": text, "type": "Error", "code": status}}
