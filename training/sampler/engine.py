"""One vLLM server: its HTTP API, and the checks that it serves the version that was published.

Needs vLLM 0.32 or newer, which says with each reply which weights it was drawn from. Requests go to
`/inference/v1/generate` (token ids in, token ids out: no chat template, no defaults of the engine).
An adapter is loaded under a new name for each version: under an old name the engine may keep what
it has cached for the weights before. Full weights are reloaded in place, and the cache emptied.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests

from stepagent.agents.completions import without_user
from stepagent.agents.models import NO_LIMIT
from stepagent.training.sampler.version import SamplerError, Version
from stepagent.training.trees.sampling import Sampling

CONNECT_SECONDS = 5.0
PROBE_TOLERANCE = 0.1
"""Nats by which engine and trainer may differ in the mean over the probe's tokens. Rounding in
bfloat16 makes about 0.02, another model more than 0.5."""


class EngineGone(Exception):
    """The engine does not answer, or with an error of its own: others may do better."""


class StaleVersion(EngineGone):
    """The engine serves other weights than those published: it was restarted, or somebody else has
    published to it."""


@dataclass(frozen=True)
class Prompt:
    """A state that waits for a reply."""

    ids: Sequence[int]
    limit: int
    """The most tokens that the reply may have."""
    seed: int
    """Of the draws, from 0 to 2⁶³ - 1; unused where greedy."""
    key: Hashable
    """Prompts of one key share a beginning, so they go to the same engine."""


@dataclass(frozen=True)
class Drawn:
    """A reply as the engine gave it: what follows its end is still to be cut off."""

    ids: list[int]
    cached: int = 0
    """Tokens of the prompt that the engine had in its cache, where it says so."""

    def reply(self, sampling: Sampling) -> list[int]:
        """The ids up to and including the first that ends the reply."""
        starts = (self.ids[:n] for n in range(1, len(self.ids) + 1))
        return next(filter(sampling.ends, starts), self.ids)


def session() -> requests.Session:
    """A session for one thread; keeps its connections open."""
    opened = requests.Session()
    if key := os.environ.get("VLLM_API_KEY"):
        opened.headers["Authorization"] = f"Bearer {key}"
    return opened


class Engine:
    """One vLLM server."""

    def __init__(self, url: str, timeout: float):
        self.url = url.rstrip("/").removesuffix("/v1")
        self.name = without_user(self.url)
        self.timeout = timeout
        """Seconds that a request may take."""
        self.context = NO_LIMIT
        """Tokens that it takes, prompt and reply together; known once it is prepared."""

    # Replies ------------------------------------------------------------------------------------

    def generate(
        self, session: requests.Session, version: Version, prompt: Prompt, sampling: Sampling
    ) -> Drawn:
        """A reply to a prompt.

        Raises EngineGone, StaleVersion where it is not of this version, and SamplerError where the
        engine refuses the prompt.
        """
        decoding = sampling.decoding
        parameters = {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": prompt.limit,
            "stop_token_ids": sorted(sampling.eos_ids),
            "ignore_eos": True,  # of the engine's own choice: ours are all above
            "stop": list(sampling.stops),
        }
        if decoding.temperature:
            parameters["seed"] = prompt.seed
        answer = self._generate(session, version, prompt.ids, parameters)
        usage = answer.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Drawn(self._reply(answer, version), cached)

    def _generate(
        self,
        session: requests.Session,
        version: Version,
        ids: Sequence[int],
        parameters: Mapping[str, Any],
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"token_ids": list(ids), "sampling_params": parameters}
        if version.is_adapter:
            body["model"] = version.name
        status, answer = self._call(session, "POST", "/inference/v1/generate", body)
        if status == 404 and _is_no_route(answer):
            raise SamplerError(f"{self.name} has no /inference/v1/generate: it takes vLLM ≥ 0.32")
        if status == 404:
            raise StaleVersion(f"{self.name} does not have the version {version.name}")
        if status == 403:
            raise SamplerError(f"{self.name} refuses ({_message(answer)})")
        return self._ok(status, answer, "the prompt")

    def _reply(self, answer: Mapping[str, Any], version: Version) -> list[int]:
        """The token ids in an answer, if they are all of the version."""
        try:
            choice = answer["choices"][0]
            ids, reason = [int(token) for token in choice["token_ids"]], choice["finish_reason"]
            spans = choice.get("weight_versions") or []
            served = {answer["model"]} if version.is_adapter else {s["version"] for s in spans}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SamplerError(
                f"{self.name} answers unlike vLLM ≥ 0.32 ({type(error).__name__} {error})"
            ) from None
        if reason == "abort" or not ids:
            raise EngineGone(f"{self.name} has dropped a request")
        if served != {version.name}:
            names = ", ".join(sorted(map(str, served))) or "no version"
            raise StaleVersion(f"{self.name} has answered with {names}, not {version.name}")
        return ids

    # Versions -----------------------------------------------------------------------------------

    def prepare(self, session: requests.Session, version: Version, context: int) -> None:
        """Makes the engine serve a version, and proves that it does.

        Raises EngineGone, or SamplerError where it cannot serve it: the adapter exceeds its limits,
        it does not see the shared folder, it has another base, or fewer positions than `context`.
        """
        cards = self._models(session)
        if version.is_adapter:
            self._load_adapter(session, version, cards)
        else:
            self._reload(session, version)
        self.context = int(cards[0].get("max_model_len") or NO_LIMIT)
        if self.context < context:
            raise SamplerError(
                f"{self.name} takes at most {self.context} tokens, but the run's longest state has "
                f"{context} with its reply: start it with --max-model-len {context}"
            )
        self._prove(session, version)

    def forget_others(self, session: requests.Session, version: Version) -> None:
        """Unloads the adapters of the run's earlier versions."""
        prefix = version.name.rpartition("-")[0] + "-"
        for card in self._models(session) if version.is_adapter else ():
            name = str(card.get("id"))
            if name.startswith(prefix) and name != version.name:
                body = {"lora_name": name}
                self._call(session, "POST", "/v1/unload_lora_adapter", body)

    def _models(self, session: requests.Session) -> list[dict[str, Any]]:
        """What it serves: its base, then the adapters."""
        status, answer = self._call(session, "GET", "/v1/models")
        cards = answer.get("data") if isinstance(answer, dict) else None
        if status in (401, 403):
            raise SamplerError(f"{self.name} refuses the key: set VLLM_API_KEY as it was started")
        if status != 200 or not isinstance(cards, list) or not cards:
            raise EngineGone(f"{self.name} serves no model (status {status}): is it vLLM?")
        return sorted(cards, key=lambda card: card.get("parent") is not None)

    def _load_adapter(
        self, session: requests.Session, version: Version, cards: Sequence[Mapping[str, Any]]
    ) -> None:
        if any(card.get("id") == version.name for card in cards):
            return
        body = {"lora_name": version.name, "lora_path": str(version.path)}
        status, answer = self._call(session, "POST", "/v1/load_lora_adapter", body)
        text = _message(answer)
        if status == 200 or "already been loaded" in text:  # by another process of the run
            return
        if _is_no_route(answer):
            hint = "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
        elif status == 404:
            hint = f"{_NOT_SHARED} ({version.path.parent})"
        elif "max_lora_rank" in text:
            hint = "start it with a higher --max-lora-rank, or lower policy.lora.r"
        else:
            hint = "change policy.lora, or how the engine was started"
        raise SamplerError(f"{self.name} cannot load the adapter ({text}): {hint}")

    def _reload(self, session: requests.Session, version: Version) -> None:
        status, answer = self._call(session, "GET", "/weight_info")
        if status == 404:
            raise SamplerError(
                f"{self.name} cannot take new weights: start it with VLLM_SERVER_DEV_MODE=1 (vLLM "
                "≥ 0.32), where nobody but the trainer can reach it"
            )
        if self._ok(status, answer, "its version").get("weight_version") == version.name:
            return
        steps: list[tuple[str, dict[str, Any]]] = [
            ("/pause", {}),  # ends requests that other processes of the run have under way
            (
                "/collective_rpc",
                {"method": "reload_weights", "kwargs": {"weights_path": str(version.path)}},
            ),
            ("/reset_prefix_cache", {}),
            ("/resume", {}),
            ("/update_weight_version", {"new_version": version.name}),
        ]
        for path, body in steps:
            status, answer = self._call(session, "POST", path, body)
            if status != 200:
                self._call(session, "POST", "/resume", {})
                hint = f"{_NOT_SHARED} ({version.path.parent})"
                raise SamplerError(
                    f"{self.name} cannot take the weights in {version.path} ({_message(answer)}): "
                    f"it must have been started with the run's model, and {hint}"
                )
            if isinstance(answer, dict) and answer.get("success") is False:
                raise EngineGone(f"{self.name} did not do {path}")

    def _prove(self, session: requests.Session, version: Version) -> None:
        """Raises SamplerError unless engine and trainer give a text the same probabilities."""
        parameters = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0}
        answer = self._generate(session, version, version.probe, parameters)
        self._reply(answer, version)
        rows = answer.get("prompt_logprobs") or []
        try:
            engine = [
                float(row[str(token)]["logprob"])
                for row, token in zip(rows[1:], version.probe[1:], strict=True)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise SamplerError(f"{self.name} gives no log-probabilities of a prompt") from error
        differences = [abs(a - b) for a, b in zip(engine, version.log_probs, strict=True)]
        mean = sum(differences) / len(differences)
        if not mean <= PROBE_TOLERANCE:
            raise SamplerError(
                f"{self.name} serves another model than the run's: its log-probabilities differ by "
                f"{mean:.2f} per token on average (at most {PROBE_TOLERANCE})"
            )

    # Requests -----------------------------------------------------------------------------------

    def _call(
        self, session: requests.Session, method: str, path: str, body: Any = None
    ) -> tuple[int, Any]:
        """Status and answer: JSON where it is, else text. Raises EngineGone, at a status from 502
        to 504 too: there a proxy speaks for an engine that is away."""
        try:
            answer = session.request(
                method, self.url + path, json=body, timeout=(CONNECT_SECONDS, self.timeout)
            )
        except requests.Timeout:
            raise EngineGone(f"{self.name} has not answered within {self.timeout:g} s") from None
        except requests.RequestException as error:
            raise EngineGone(f"{self.name} cannot be reached ({type(error).__name__})") from None
        if answer.status_code in (502, 503, 504):
            raise EngineGone(f"{self.name} is away (status {answer.status_code})")
        try:
            return answer.status_code, answer.json()
        except ValueError:
            return answer.status_code, answer.text

    def _ok(self, status: int, answer: Any, subject: str) -> dict[str, Any]:
        """The answer. Raises EngineGone for a fault of the engine, SamplerError for one of ours."""
        if status == 200 and isinstance(answer, dict):
            return answer
        text = f"{self.name} refuses {subject} (status {status}: {_message(answer)})"
        raise EngineGone(text) if status >= 500 or status == 429 else SamplerError(text)


_NOT_SHARED = "sampler.shared must be the same folder under the same path for trainer and engine"


def _message(answer: Any) -> str:
    """An error's text, short."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:300]


def _is_no_route(answer: Any) -> bool:
    """Whether the server has no such address at all."""
    return isinstance(answer, dict) and answer.get("detail") == "Not Found"
