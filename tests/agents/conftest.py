"""Small things to test agents with: an environment, a tokenizer, and tiny random models."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from stepagent.agents.core import Turn
from stepagent.envs.core import Outcome, TextEnv
from stepagent.envs.react import Message

HAVE_TORCH = find_spec("torch") is not None
collect_ignore = [] if HAVE_TORCH else ["test_transformers.py", "test_models.py", "test_chat.py"]

PROMPT = """# Instruction
Say the numbers from one upwards.

# Example
Observation: Begin.
Thought: The first number is one.
Action: one
"""
NUMBERS = ("one", "two", "three", "four")


class CountEnv(TextEnv):
    """Say one, two, three, four: each right number earns a quarter."""

    def __init__(self, prompt_file: Path, **options: Any):
        self.prompt_file = prompt_file  # type: ignore[misc]
        super().__init__(**options)

    def list_tasks(self) -> list[str]:
        return [f"count/{i}" for i in range(5)]

    def begin(self, task_id: str) -> str:
        self.said, self.plans = 0, getattr(self, "plans", 0)
        self.instruction = f"Count, please ({task_id})."
        return self.instruction

    def act(self, action: str) -> Outcome:
        right = self.said < len(NUMBERS) and action == NUMBERS[self.said]
        self.said += right
        return Outcome(
            "Right." if right else "Wrong.",
            self.said / 4,
            done=self.said == 4,
            valid=action in NUMBERS,
        )

    def expert_plan(self) -> list[tuple[str, str]]:
        self.plans += 1
        return [(f"Now comes {number}.", number) for number in NUMBERS]

    def admissible_actions(self) -> list[str]:
        return list(NUMBERS)

    def step_limit(self, task_id: str) -> int:
        return 10


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny models are slowed down by threads, many times over where the machine is shared."""
    if not HAVE_TORCH:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.md"
    path.write_text(PROMPT)
    return path


@pytest.fixture
def count_env(prompt_file: Path) -> CountEnv:
    env = CountEnv(prompt_file)
    env.reset(seed=0)
    return env


def say(*texts: str, system: str = "") -> list[Message]:
    """A conversation of observations and replies in turn."""
    roles = ("user", "assistant")
    found = [Message(role=roles[i % 2], content=text) for i, text in enumerate(texts)]
    return [Message(role="system", content=system), *found] if system else found


def turn(key: Any, messages: list[Message], env: Any = None, seed: int = 0) -> Turn:
    return Turn(key, messages, env, seed)


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    "Observation: you see a red apple on the wooden table and an open door to the kitchen\n"
    "Thought: the door is open so I go through it and look around\nAction: go to kitchen\n"
) * 3


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    pytest.importorskip("transformers")
    return make_tokenizer()


def make_model(kind: str, vocab: int, seed: int = 0, **changes: Any) -> Any:
    """A random model in float32: llama, mistral, qwen2, qwen3, gpt2 or mamba."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    common: dict[str, Any] = {
        "vocab_size": vocab,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if kind == "gpt2":
        common |= {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 1024,
            "initializer_range": 0.2,
        }
    elif kind == "mamba":
        common |= {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    else:
        common |= {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 2048,
            "initializer_range": 0.2,
            "tie_word_embeddings": False,
        }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(common | changes)))
    return model.float().eval()
