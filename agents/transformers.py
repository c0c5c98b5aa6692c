"""The agent that runs a local language model and keeps the conversations' caches between turns.

It is streaming (see `agents.core`): a conversation that returns while others are being answered
joins them at the next token, so that the batch stays full.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from stepagent.agents import models
from stepagent.agents.chat import ChatCodec
from stepagent.agents.core import Agent, ModelReply, Turn, reply_limit
from stepagent.agents.generation import Decoding, Generator, Request, why_uncacheable
from stepagent.agents.naive_generation import NaiveGenerator
from stepagent.agents.tool_template import ToolCodec
from stepagent.envs.react import Message, PromptStyle
from stepagent.envs.tools import Tool
from stepagent.errors import check_range


class TransformersAgent(Agent):
    """Answers with a model that `transformers` runs.

    Parameters
    ----------
    model: a name as in `agents.models.load_model`, or a loaded model (such as a policy in training:
        caches are dropped when its weights have changed in between).
    tokenizer: of a loaded model.
    name: of the agent in reports.
    dtype, device: as in `load_model`; "auto" is bfloat16 where that is fast, CUDA if available.
    merge: fold an adapter into the weights; None: only in float32, where nothing is rounded away.
    temperature, top_p: 0 is greedy; else sampling whose noise depends on (seed, turn) alone.
    max_new_tokens: tokens of a reply, its thinking included; 16 to 512 are usual without any.
        None: 256, and 4,096 for a model that thinks by its template.
    enable_thinking, reasoning_effort: arguments of the model's chat template, for the models that
        know them; None: the template's own.
    template: further arguments of the chat template, and two of our own: `history_thoughts` and
        `date` (see `agents.chat_template`).
    record_tokens: give the ids of every reply's tokens with it, for trajectories (`Step.tokens`).
    context: tokens of a conversation and its reply; None: as far as the model's positions reach.
    batch_size: conversations answered at once, and kept in the cache; None: 16, on CUDA 32.
    instruction, example, thoughts, suffix, format: the prompt's style (see
        `envs.react.PromptStyle`). In the format "tools" the model calls the environment's functions
        in its own notation (`agents.tool_template`).

    Raises ModelError (a ValueError) if the model cannot be loaded, has no chat template, or has a
    context too short for max_new_tokens.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        dtype: Any = "auto",
        device: str = "auto",
        merge: bool | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int | None = None,
        enable_thinking: bool | None = None,
        reasoning_effort: str | None = None,
        template: Mapping[str, Any] | None = None,
        context: int | None = None,
        batch_size: int | None = None,
        record_tokens: bool = False,
        instruction: bool = True,
        example: bool = True,
        thoughts: bool = True,
        suffix: str = "",
        format: Literal["react", "tools"] = "react",
    ):
        check_range(1, batch_size=batch_size, context=context)
        self.template = {**(template or {}), **_given(enable_thinking, reasoning_effort)}
        self._record_tokens = record_tokens
        self.style = PromptStyle(instruction, example, thoughts, suffix, format)
        if isinstance(model, str | Path):
            name = name or (str(model) if str(model) in models.EMBEDDED else f"hf:{model}")
            dtype = models.pick_dtype(dtype, device)
            tokenizer = tokenizer or models.load_tokenizer(model)
            merge = dtype == torch.float32 if merge is None else merge
            model = models.load_model(model, dtype, device, merge=merge)
        elif tokenizer is None:
            raise ValueError("a loaded model needs its tokenizer, too")
        self.name = name or f"hf:{getattr(model, 'name_or_path', '') or type(model).__name__}"
        self.model, self.tokenizer = model, tokenizer
        self.codec = ChatCodec(tokenizer, self.template)
        self._tool_codecs: dict[str, ToolCodec] = {}
        self._codec_of: dict[Hashable, ChatCodec] = {}
        limit = reply_limit(max_new_tokens, _thinks(self.codec, self.template))
        self.decoding = Decoding(temperature, top_p, limit)
        longest = models.context_length(model)
        self.context = min(longest, context or longest)
        if self.context <= limit:
            raise models.ModelError(
                f"{self.name} has a context of {self.context} tokens, which "
                f"leaves no room beside max_new_tokens={limit}"
            )
        on_cuda = model.get_input_embeddings().weight.device.type == "cuda"
        self.batch_size = batch_size or (32 if on_cuda else 16)
        ends = models.eos_ids(model, tokenizer) | {self.codec.end_of_turn_id}
        self.why_uncached = self._in_eval(lambda: why_uncacheable(model))
        """Why conversations are read again in every turn; "" if their cache is kept."""
        self._generator: Generator | NaiveGenerator
        if self.why_uncached:
            self._generator = NaiveGenerator(
                model, ends=ends, stops=self.codec.stops, tokenizer=tokenizer
            )
        else:
            self._generator = Generator(
                model,
                ends=ends,
                stopped=self.codec.has_stop,
                slots=self.batch_size,
                limit=self.context,
            )
        self._ends = ends
        self.streaming = isinstance(self._generator, Generator)
        self._state = self._weights_state()
        self._prompt_count, self._cut_count, self._seconds = 0, 0, 0.0

    # Answering ----------------------------------------------------------------------------------

    def act(self, turns: Sequence[Turn]) -> list[str]:
        """One reply per turn. Raises ValueError if a conversation exceeds the context even when
        shortened."""
        began = time.perf_counter()
        requests = self._requests(turns)
        ids = self._in_eval(lambda: self._generator.generate(requests, self.decoding))
        self._seconds += time.perf_counter() - began
        return [self._text(turn.key, reply) for turn, reply in zip(turns, ids, strict=True)]

    def submit(self, turns: Sequence[Turn]) -> None:
        """Takes turns. Raises ValueError if a conversation exceeds the context even when
        shortened."""
        assert isinstance(self._generator, Generator), self.why_uncached
        self._generator.admit(self._requests(turns))

    def poll(self) -> list[tuple[Hashable, str | Exception]]:
        """Generates one token for each active turn (or reads a chunk of its prompt)."""
        generator = self._generator
        assert isinstance(generator, Generator), self.why_uncached
        began = time.perf_counter()
        ended = self._in_eval(lambda: generator.step(self.decoding))
        self._seconds += time.perf_counter() - began
        return [(key, self._text(key, ids)) for key, ids in ended]

    def _requests(self, turns: Sequence[Turn]) -> list[Request]:
        """The turns as tokens; drops the caches if the weights have changed."""
        if self._state != (state := self._weights_state()):
            self.reset()
            self._state = state
        requests = []
        for turn in turns:
            number = sum(message["role"] == "assistant" for message in turn.messages)
            rng = np.random.default_rng([turn.seed % 2**63, number])
            self._codec_of[turn.key] = codec = self._codec(turn.tools(self.style))
            requests.append(Request(turn.key, self._encode(turn.messages, codec), rng))
        self._prompt_count += len(turns)
        return requests

    def check(self, messages: Sequence[Message]) -> None:
        """Raises ValueError unless an episode with this opening fits the context."""
        self.codec.fit(messages, self.context - self.decoding.max_new_tokens)

    def _codec(self, tools: Sequence[Tool]) -> ChatCodec:
        """The codec for conversations with these functions."""
        if not tools:
            return self.codec
        listed = json.dumps([tool.schema() for tool in tools])
        if listed not in self._tool_codecs:
            self._tool_codecs[listed] = codec = ToolCodec(self.tokenizer, tools, self.template)
            self._ends = self._generator.ends = self._ends | codec.end_ids
        return self._tool_codecs[listed]

    def _encode(self, messages: Sequence[Message], codec: ChatCodec) -> list[int]:
        limit = self.context - self.decoding.max_new_tokens
        ids = codec.prompt(messages)
        if len(ids) <= limit:
            return ids
        fitting, _ = codec.fit(messages, limit)
        self._cut_count += 1
        return codec.prompt(fitting)

    def _weights_state(self) -> int:
        """Changes whenever a weight is written to (optimizer steps, loading) or replaced."""
        return hash(tuple((w.data_ptr(), w._version) for w in self.model.parameters()))

    def _text(self, key: Hashable, ids: list[int]) -> ModelReply:
        """A conversation's reply, of which the ids were generated."""
        ended = bool(ids) and ids[-1] in self._ends
        text = self._codec_of[key].decode(ids[:-1] if ended else ids).strip()
        at_limit = not ended and len(ids) >= self.decoding.max_new_tokens
        if at_limit and self.codec.has_stop(ids):
            at_limit = False
        if self.codec.opens_thought and not text.startswith("<think>"):
            text = f"<think>\n{text}"
        ending = "length" if at_limit else "" if text else "empty"
        return ModelReply(text, ids if self._record_tokens else (), ending=ending)

    def _in_eval(self, work: Any) -> Any:
        """Calls `work` with the model in evaluation mode, and restores training mode if it was
        set."""
        if not self.model.training:
            return work()
        self.model.eval()
        try:
            return work()
        finally:
            self.model.train()

    # Housekeeping -------------------------------------------------------------------------------

    def forget(self, key: Hashable) -> None:
        self._codec_of.pop(key, None)
        self._generator.forget(key)

    def reset(self) -> None:
        """Drops all caches. Needed only if the model changes without its weights changing (an
        adapter switched off, say), or if memory is short."""
        self._generator.clear()

    def close(self) -> None:
        self.reset()

    def fingerprint(self) -> dict[str, str]:
        template = json.dumps(self.template, sort_keys=True, default=str) if self.template else ""
        return {
            "model": self.name,
            "weights": models.weights_checksum(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.get_input_embeddings().weight.device.type,
            "decoding": str(self.decoding),
            "context": str(self.context),
            "style": str(self.style),
            **({"template": template} if template else {}),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        }

    def statistics(self) -> dict[str, float]:
        counts = self._generator.counts
        return {
            "prompts": self._prompt_count,
            "prompts_cut": self._cut_count,
            "tokens_read": counts.read,
            "tokens_kept": counts.cached,
            "tokens_generated": counts.generated,
            "seconds": self._seconds,
        }


_THINKS = re.compile(r"enable_thinking|reasoning_effort|<\|channel\|>|\[THINK\]")


def _given(enable_thinking: bool | None, reasoning_effort: str | None) -> dict[str, Any]:
    """The arguments of a chat template that are no None."""
    options = {"enable_thinking": enable_thinking, "reasoning_effort": reasoning_effort}
    return {name: value for name, value in options.items() if value is not None}


def _thinks(codec: ChatCodec, arguments: Mapping[str, Any]) -> bool:
    """Whether a model thinks before it answers, by its template's prompt for a reply."""
    template = str(getattr(codec.tokenizer, "chat_template", ""))
    if codec.opens_thought:
        return True
    if arguments.get("enable_thinking") is False or arguments.get("reasoning_effort") == "none":
        return False
    return bool(_THINKS.search(template))
