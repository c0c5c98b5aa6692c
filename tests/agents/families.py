"""Chat templates of the shapes that models really have, written anew as small ones.

Their special tokens are those of the real ones; the tokenizer is the tests' own.
`python -m tests.agents.families` writes the table of `docs/pages/templates.md`.
"""

from __future__ import annotations

import copy
import datetime
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from stepagent.agents.chat import ChatCodec
from stepagent.files import write_text
from tests.agents.conversations import say
from tests.agents.tiny_models import make_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('users and assistants must take turns') }}{% endif %}{% endfor %}"
)
# The system message, taken out of the turns.
SPLIT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}"
    "{% endif %}"
)
# Splits the thought off an assistant's message, from its field or its text.
SPLIT_THOUGHT = (
    "{% set text = m.content %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)


def qwen3(prompt: str) -> str:
    """Thoughts stay behind the last observation only."""
    return (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}" + SPLIT_THOUGHT + "<|im_start|>"
        "assistant\n{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
        "{{ text }}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        + prompt
        + "{% endif %}"
    )


NO_THINKING = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"


def deepseek(prompt: str, header: str = "") -> str:
    return SPLIT_SYSTEM + (
        "{{ bos_token }}{{ system }}{% for m in turns %}{% if m.role == 'user' %}"
        "<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>" + header + "{{ m.content."
        "split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜>" + prompt + "{% endif %}"
    )


def llama3(system: str) -> str:
    return (
        "{{ bos_token }}" + system + "{% for m in turns %}<|start_header_id|>{{ m.role }}"
        "<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )


def mistral(user: str, reply: str, last: str = "") -> str:
    """`last` is written before the last observation."""
    before = "{% if loop.last %}" + last + "{% endif %}" if last else ""
    return (
        "{{ bos_token }}{% for m in turns %}{% if m.role == 'user' %}"
        + user.replace("TEXT", before + "{{ m.content }}")
        + "{% else %}"
        + reply
        + "</s>{% endif %}{% endfor %}"
    )


PLAIN_TURNS = "{% set turns = messages %}"
LAST_SYSTEM = "{% if system %}{{ system }}\n\n{% endif %}"
PHI3 = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
GEMMA = (
    "{% for m in turns %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{% if loop.first and system %}{{ system }}\n\n{% endif %}{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
HARMONY = SPLIT_SYSTEM + (
    "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}\n\n"
    "Reasoning: {{ reasoning_effort | default('medium') }}<|end|>"
    "{% if system %}<|start|>developer<|message|># Instructions\n\n{{ system }}<|end|>{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>"
    "{% elif loop.last and not add_generation_prompt %}{% if m.thinking %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>"
    "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """One shape of template."""

    name: str
    template: str
    special: tuple[str, ...]
    end: str
    """The token that ends a reply."""
    bos: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    system: bool = True
    """Whether it has a system role."""
    thinks: str = "no"
    """no: a thought stays in history as it is; yes: it is dropped; opened: the prompt opens it."""
    has_fields: bool = False
    """Thoughts are passed in a field of their own."""

    def tokenizer(self) -> Any:
        return tokenizer_of(self)


def tokenizer_of(family: Any) -> Any:
    """The tests' tokenizer with a family's special tokens and template."""
    tokenizer = copy.deepcopy(_base())
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    tokenizer.add_tokens(["<think>", "</think>"])
    if family.bos:
        tokenizer.bos_token = family.bos
    tokenizer.eos_token = tokenizer.pad_token = family.end
    tokenizer.chat_template = family.template
    return tokenizer


@lru_cache(maxsize=1)
def _base() -> Any:
    return make_tokenizer()


IM = ("<|im_start|>", "<|im_end|>")
S = ("<s>", "</s>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
LLAMA3 = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
HEADER = "<|start_header_id|>system<|end_header_id|>\n\n"
DATED = HEADER + (
    "Today Date: {{ strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' }}\n\n"
    "{{ system }}<|eot_id|>"
)
GLM = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>")
GEMMA_TOKENS = ("<bos>", "<start_of_turn>", "<end_of_turn>")
COHERE = (
    "<BOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
)
HARMONY_TOKENS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")

FAMILIES = [
    Family("ChatML", CHATML, IM, IM[1]),
    Family(
        "Llama 2",
        SPLIT_SYSTEM
        + ALTERNATING.replace("in messages", "in turns")
        + "{% for m in turns %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
        "{% if loop.first and system %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}"
        "{{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} </s>{% endif %}"
        "{% endfor %}",
        S,
        "</s>",
        "<s>",
    ),
    Family("Llama 3", llama3(PLAIN_TURNS), LLAMA3, "<|eot_id|>", LLAMA3[0]),
    Family(
        "Llama 3.1 to 3.3 (date)", llama3(SPLIT_SYSTEM + DATED), LLAMA3, "<|eot_id|>", LLAMA3[0]
    ),
    Family(
        "Mistral 7B v0.1",
        NO_SYSTEM + ALTERNATING + PLAIN_TURNS + mistral("[INST] TEXT [/INST]", "{{ m.content }}"),
        S,
        "</s>",
        "<s>",
        system=False,
    ),
    Family(
        "Mistral 7B v0.2",
        NO_SYSTEM + ALTERNATING + PLAIN_TURNS + mistral(" [INST] TEXT [/INST]", " {{ m.content }}"),
        S,
        "</s>",
        "<s>",
        system=False,
    ),
    Family(
        "Mistral 7B v0.3",
        SPLIT_SYSTEM + mistral("[INST] TEXT[/INST]", " {{ m.content }}", LAST_SYSTEM),
        (*S, "[INST]", "[/INST]"),
        "</s>",
        "<s>",
    ),
    Family(
        "Mistral 7B v0.3 with tools",
        SPLIT_SYSTEM
        + mistral(
            "{% if loop.last and tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]"
            "{% endif %}[INST] TEXT[/INST]",
            " {{ m.content }}",
            LAST_SYSTEM,
        ),
        (*S, "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        "</s>",
        "<s>",
        {"tools": [{"type": "function", "function": {"name": "go", "parameters": {}}}]},
    ),
    Family(
        "Mistral-Nemo",
        SPLIT_SYSTEM + mistral("[INST]TEXT[/INST]", "{{ m.content }}", LAST_SYSTEM),
        (*S, "[INST]", "[/INST]"),
        "</s>",
        "<s>",
    ),
    Family(
        "Qwen2.5",
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
        + CHATML,
        IM,
        IM[1],
    ),
    Family("Qwen3", qwen3(NO_THINKING + "{% endif %}"), IM, IM[1], thinks="yes"),
    Family(
        "Qwen3, `enable_thinking: false`",
        qwen3(NO_THINKING + "{% endif %}"),
        IM,
        IM[1],
        arguments={"enable_thinking": False},
        thinks="yes",
    ),
    Family("Qwen3-Thinking", qwen3("<think>\n"), IM, IM[1], thinks="opened"),
    Family(
        "Qwen3.5",
        qwen3(NO_THINKING + "{% else %}<think>\n{% endif %}"),
        IM,
        IM[1],
        thinks="opened",
    ),
    Family(
        "DeepSeek-R1 and distillates",
        deepseek("<think>\n"),
        DEEPSEEK,
        DEEPSEEK[1],
        DEEPSEEK[0],
        thinks="opened",
    ),
    Family(
        "DeepSeek-V3.1, thinking",
        deepseek("<think>", header="</think>"),
        DEEPSEEK,
        DEEPSEEK[1],
        DEEPSEEK[0],
        thinks="opened",
    ),
    Family(
        "GLM-4",
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        GLM,
        "<|user|>",
    ),
    Family(
        "GLM-4.5",
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}"
        + SPLIT_THOUGHT
        + "<think></think>\n{{ text }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        GLM,
        "<|user|>",
        thinks="yes",
    ),
    Family(
        "Nemotron 3",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        + SPLIT_THOUGHT
        + "<think>{% if loop.last and thought %}\n{{ thought }}\n{% endif %}</think>{{ text }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        IM,
        IM[1],
        thinks="opened",
    ),
    Family(
        "Gemma 2",
        NO_SYSTEM + "{{ bos_token }}" + "{% set system = '' %}" + PLAIN_TURNS + GEMMA,
        GEMMA_TOKENS,
        "<end_of_turn>",
        "<bos>",
        system=False,
    ),
    Family(
        "Gemma 3", SPLIT_SYSTEM + "{{ bos_token }}" + GEMMA, GEMMA_TOKENS, "<end_of_turn>", "<bos>"
    ),
    Family(
        "Phi-3",
        PHI3 + "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|end|>",
    ),
    Family(
        "Phi-4",
        "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}",
        (*IM, "<|im_sep|>"),
        IM[1],
    ),
    Family(
        "SmolLM2",
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
        "You are small.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        IM,
        IM[1],
    ),
    Family(
        "SmolLM3 (date)",
        SPLIT_SYSTEM
        + "<|im_start|>system\n## Metadata\n\nToday Date: {{ strftime_now('%d %B %Y') }}\n\n"
        "{{ system }}<|im_end|>\n" + CHATML.replace("in messages", "in turns"),
        IM,
        IM[1],
    ),
    Family(
        "Command R",
        "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
        "{{ {'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>',"
        " 'assistant': '<|CHATBOT_TOKEN|>'}[m.role] }}{{ m.content | trim }}<|END_OF_TURN_TOKEN|>"
        "{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
        "{% endif %}",
        COHERE,
        "<|END_OF_TURN_TOKEN|>",
        COHERE[0],
    ),
    Family(
        "Zephyr",
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        S,
        "</s>",
    ),
    Family(
        "Vicuna",
        SPLIT_SYSTEM
        + "{{ bos_token }}{{ system or 'A chat.' }}{% for m in turns %}{% if m.role == 'user' %}"
        " USER: {{ m.content }}{% else %} ASSISTANT: {{ m.content }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}",
        S,
        "</s>",
        "<s>",
    ),
    Family(
        "gpt-oss (harmony)", HARMONY, HARMONY_TOKENS, "<|return|>", thinks="yes", has_fields=True
    ),
    Family(
        "OLMo 2",
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
        "{% if m.role == 'assistant' %}<|endoftext|>{% if not loop.last %}\n{% endif %}{% else %}\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<|endoftext|>",),
        "<|endoftext|>",
        "<|endoftext|>",
    ),
    Family(
        "Granite 3 (date)",
        SPLIT_SYSTEM
        + "<|start_of_role|>system<|end_of_role|>Today's Date: {{ strftime_now('%B %d, %Y') }}.\n"
        "{{ system }}<|end_of_text|>\n{% for m in turns %}<|start_of_role|>{{ m.role }}"
        "<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        "<|end_of_text|>",
    ),
    Family("InternLM 2", "{{ bos_token }}" + CHATML, (*S, *IM), IM[1], "<s>"),
    Family(
        "EXAONE 3.5",
        "{% for m in messages %}[|{{ m.role }}|]{{ m.content }}{% if m.role == 'user' %}\n"
        "{% else %}[|endofturn|]\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[|assistant|]{% endif %}",
        ("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]"),
        "[|endofturn|]",
    ),
]


def as_written(family: Family, *texts: str) -> list[str]:
    """The texts as the model writes them: where the prompt opens the thought, it does not."""
    opened = family.thinks == "opened"
    return [t.removeprefix("<think>").lstrip("\n") if opened else t for t in texts]


class _Day(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls(2024, 7, 26)


def shown(family: Family, tokenizer: Any, messages: Any) -> list[int]:
    """The prompt that `apply_chat_template` gives, on the day that the codec has."""
    messages = [dict(m) for m in messages]
    if not family.system and messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
        messages[0]["content"] = f"{system}\n\n{messages[0]['content']}"
    for message in messages:
        thought, closed, rest = message["content"].partition("</think>")
        if family.has_fields and closed:
            message["content"] = rest.strip()
            message["thinking"] = thought.removeprefix("<think>").strip()
    with mock.patch("transformers.utils.chat_template_utils.datetime", _Day):
        out = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, **family.arguments
        )
    return out["input_ids"]


PAGE = Path(__file__).parents[2] / "docs" / "pages" / "templates.md"
BEGIN, END = "<!-- generated: python -m tests.agents.families -->\n", "<!-- end -->\n"
TEXTS = ("A door.", "Action: go", "A hall.", "Action: look", "A wall.", "Action: wait")


def table() -> str:
    """What the codec finds out about each family, as a table in Markdown."""
    lines = [
        "| Family | Passes | System message | Reply behind its prompt | Earlier thoughts | Row |",
        "|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        codec = ChatCodec(family.tokenizer(), family.arguments)
        lines.append(f"| {family.name} | {' | '.join(_cells(family, codec))} |")
    return "\n".join([*lines, ""])


def _cells(family: Family, codec: ChatCodec) -> list[str]:
    continuation = codec.template.continuation
    prompt = codec.template.prompt("SYSTEM", say(*TEXTS[:3]))
    system = "in its own place"
    if not codec.has_system_role:
        system = "before the first observation"
    elif prompt.index("SYSTEM") > prompt.index("A door."):
        system = "in the newest observation"
    lead = continuation.lead.replace("\n", "⏎").replace(" ", "␣")
    follows = f"after `{lead}`" if lead else "at once"
    if continuation.opened:
        follows = "behind its thought, which the prompt opens"
    opening = "" if continuation.opened else "<think>\n"
    thinking = [
        f"{opening}I think.\n</think>\n\n{text}" if i % 2 else text for i, text in enumerate(TEXTS)
    ]
    plain, branching = (codec.encode(say(*t, system="Be brief.")) for t in (TEXTS, thinking))
    row = "branches in every step" if plain.joins else "branches behind thoughts"
    if not branching.joins:
        row = "one"
    thoughts = "stay" if "I think." in codec.template.prompt("", say(*thinking[:3])) else "dropped"
    passes = all(
        codec.encode(messages).state(step)
        == shown(family, codec.tokenizer, messages[: 2 + 2 * step])
        for messages in (say(*texts, system="Be brief.") for texts in (TEXTS, thinking))
        for step in range(3)
    )
    return ["yes" if passes else "no", system, follows.replace("|", "\\|"), thoughts, row]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    write_text(PAGE, before + BEGIN + table() + END + rest.partition(END)[2])
