"""Chat templates with functions, of the shapes that models really have, written anew as small ones.

Each writes the list of functions, calls, and their results as the real one does, with its special
tokens. `python -m tests.agents.tool_families` writes their table in `docs/pages/templates.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stepagent.agents.tool_template import ToolCodec
from stepagent.envs.react import Message, parse
from stepagent.envs.tools import Tool, is_call, write_call
from stepagent.files import write_text
from tests.agents.conversations import say
from tests.agents.families import (
    COHERE,
    DEEPSEEK,
    END,
    GLM,
    HARMONY_TOKENS,
    IM,
    LLAMA3,
    PAGE,
    SPLIT_SYSTEM,
    SPLIT_THOUGHT,
    S,
    tokenizer_of,
)

LISTED = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
CHATML_TOOLS = (
    SPLIT_SYSTEM
    + "<|im_start|>system\n{% if system %}{{ system }}\n\n{% endif %}{% if tools %}# Tools\n\n"
    + "<tools>\n"
    + LISTED
    + "</tools>{% endif %}<|im_end|>\n"
)
ROLE_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CHATML_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
HERMES_CALLS = (
    "{% for c in m.tool_calls %}{% if text or not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}"
)
HERMES_RESULT = "<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
QWEN_CODER_CALLS = (
    "{% for c in m.tool_calls %}<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
    "{% endfor %}"
)
LAST_QUESTION = (
    "{% set ns = namespace(last=0) %}{% for m in turns %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)


def chatml(assistant: str, result: str = HERMES_RESULT, prompt: str = CHATML_PROMPT) -> str:
    return (
        CHATML_TOOLS
        + LAST_QUESTION
        + "{% for m in turns %}{% if m.role == 'tool' %}"
        + result
        + "{% elif m.role == 'assistant' %}<|im_start|>assistant\n"
        + assistant
        + "<|im_end|>\n{% else %}"
        + ROLE_TURN
        + "{% endif %}{% endfor %}"
        + prompt
    )


MISTRAL_HEAD = (
    SPLIT_SYSTEM + "{% set ns = namespace(last=0) %}{% for m in turns %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{{ bos_token }}{% for m in turns %}"
    "{% if m.role == 'user' %}{% if tools and loop.index0 == ns.last %}"
    "[AVAILABLE_TOOLS]BLANK{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]BLANK"
    "{% if system and loop.index0 == ns.last %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% elif m.tool_calls is defined %}{% if m.tool_calls[0].id | length != 9 %}"
    "{{ raise_exception('ids of calls have nine letters and digits') }}{% endif %}"
)
MISTRAL_V3 = MISTRAL_HEAD + (
    "[TOOL_CALLS]BLANK[{% for c in m.tool_calls %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, '
    '"id": "{{ c.id }}"}{% endfor %}]</s>'
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]BLANK"
    '{"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]'
    "{% else %}BLANK{{ m.content }}</s>{% endif %}{% endfor %}"
)
MISTRAL_V11 = MISTRAL_HEAD.replace("BLANK", "") + (
    "{{ m.content }}{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[CALL_ID]"
    "{{ c.id }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}</s>"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.tool_call_id }}[TOOL_CONTENT]{{ m.content }}"
    "[/TOOL_RESULTS]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
MISTRAL_TOKENS = (
    *(*S, "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CONTENT]", "[CALL_ID]", "[ARGS]"),
)
LLAMA31 = SPLIT_SYSTEM + (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "{% if tools %}Environment: ipython\n{% endif %}{{ system }}<|eot_id|>"
    "{% for m in turns %}{% if m.tool_calls is defined %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% set f = m.tool_calls[0].function %}"
    '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<|eot_id|>'
    "{% elif m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ m.content | tojson }}<|eot_id|>{% else %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if tools and loop.first %}Given these functions:\n\n" + LISTED + "{% endif %}"
    "{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA31_PYTHON = LLAMA31.replace(
    '{"name": "{{ f.name }}"', '<|python_tag|>{"name": "{{ f.name }}"'
).replace("| tojson }}}<|eot_id|>", "| tojson }}}<|eom_id|>")
GLM_TOOLS = (
    SPLIT_SYSTEM
    + "[gMASK]<sop><|system|>\n{{ system }}\n# Tools\n"
    + LISTED
    + "{% for m in turns %}{% if m.role == 'tool' %}RESULT{% elif m.role == 'assistant' %}"
    "<|assistant|>ASSISTANT{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GLM4 = GLM_TOOLS.replace("RESULT", "<|observation|>\n{{ m.content }}").replace(
    "ASSISTANT",
    "{% if m.tool_calls is defined %}{% if m.content %}{{ '\n' + m.content + '\n' }}{% endif %}"
    "{{ m.tool_calls[0].function.name }}\n{{ m.tool_calls[0].function.arguments | tojson }}"
    "{% else %}{{ '\n' + m.content }}{% endif %}",
)
GLM45 = GLM_TOOLS.replace(
    "RESULT", "<|observation|>\n<tool_response>\n{{ m.content }}\n</tool_response>"
).replace(
    "ASSISTANT",
    SPLIT_THOUGHT
    + "{{ '\n' }}<think>{% if loop.last %}{{ thought }}{% endif %}</think>"
    + "{% if text %}{{ '\n' + text }}{% endif %}{% for c in m.tool_calls or [] %}"
    "{{ '\n' }}<tool_call>"
    "{{ c.function.name }}\n{% for k, v in c.function.arguments.items() %}"
    "<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>"
    "{% endfor %}",
)
KIMI = (
    "{% if tools %}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_system|>tool<|im_middle|>"
    "## Return of {{ m.tool_call_id }}\n{{ m.content }}<|im_end|>{% else %}<|im_{{ m.role }}|>"
    "{{ m.role }}<|im_middle|>{{ m.content }}{% if m.tool_calls is defined %}"
    "<|tool_calls_section_begin|>{% for c in m.tool_calls %}<|tool_call_begin|>{{ c.id }}"
    "<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}<|tool_call_end|>{% endfor %}"
    "<|tool_calls_section_end|>{% endif %}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
)
KIMI_TOKENS = (
    *("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>"),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
    *("<|tool_call_end|>", "<|tool_call_argument_begin|>"),
)


def deepseek(call: str) -> str:
    """The real ones do not list functions: their servers put them into the system message."""
    return SPLIT_SYSTEM + (
        "{{ bos_token }}{{ system }}\n" + LISTED + "{% for m in turns %}{% if m.role == 'user' %}"
        "<｜User｜>{{ m.content }}{% elif m.role == 'tool' %}<｜tool▁output▁begin｜>{{ m.content }}"
        "<｜tool▁output▁end｜>{% else %}{% if turns[loop.index0 - 1].role == 'user' %}"
        "<｜Assistant｜></think>{% endif %}{{ m.content.split('</think>')[-1] }}"
        "{% if m.tool_calls is defined %}<｜tool▁calls▁begin｜>"
        + call
        + "<｜tool▁calls▁end｜>{% endif %}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
        "{% if add_generation_prompt and turns[-1].role == 'user' %}<｜Assistant｜></think>"
        "{% endif %}"
    )


DEEPSEEK_TOKENS = (
    *DEEPSEEK,
    *(f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end")),
    *(f"<｜tool▁{name}｜>" for name in ("sep", "output▁begin", "output▁end")),
)
HARMONY_TOOLS = SPLIT_SYSTEM + (
    "<|start|>system<|message|>Reasoning: medium<|end|><|start|>developer<|message|>{{ system }}\n"
    "# Tools\n"
    + LISTED
    + "<|end|>{% for m in turns %}{% if m.role == 'user' %}<|start|>user<|message|>"
    "{{ m.content }}<|end|>{% elif m.role == 'tool' %}<|start|>functions.{{ m.name }} to=assistant"
    "<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>"
    "{% elif m.tool_calls is defined %}{% if m.content and m.thinking %}"
    "{{ raise_exception('either content or thinking') }}{% endif %}"
    "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "{% endif %}<|start|>assistant to=functions.{{ m.tool_calls[0].function.name }}<|channel|>"
    "commentary json<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% elif loop.last and not add_generation_prompt %}{% if m.thinking %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>"
    "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
COHERE_TOOLS = (
    "{{ bos_token }}"
    + SPLIT_SYSTEM
    + "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{ system }}\n"
    + LISTED
    + "<|END_OF_TURN_TOKEN|>{% for m in turns %}<|START_OF_TURN_TOKEN|>{% if m.role == 'user' %}"
    "<|USER_TOKEN|>{{ m.content }}{% elif m.role == 'tool' %}<|SYSTEM_TOKEN|><|START_TOOL_RESULT|>"
    '[{"tool_call_id": "0", "results": {{ m.content | tojson }}}]<|END_TOOL_RESULT|>'
    "{% else %}<|CHATBOT_TOKEN|>{{ m.content }}{% if m.tool_calls is defined %}<|START_ACTION|>"
    '[{"tool_call_id": "0", "tool_name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}]<|END_ACTION|>{% endif %}{% endif %}"
    "<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|>"
    "<|CHATBOT_TOKEN|>{% endif %}"
)
COHERE_TOOL_TOKENS = (
    *COHERE,
    *("<|START_ACTION|>", "<|END_ACTION|>", "<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>"),
)
GRANITE_TOOLS = SPLIT_SYSTEM + (
    "<|start_of_role|>system<|end_of_role|>{{ system }}<|end_of_text|>\n<|start_of_role|>tools"
    "<|end_of_role|>" + LISTED + "<|end_of_text|>\n{% for m in turns %}<|start_of_role|>"
    "{{ 'tool_response' if m.role == 'tool' else m.role }}<|end_of_role|>{{ m.content }}"
    "{% if m.tool_calls is defined %}<|tool_call|>"
    '[{"name": "{{ m.tool_calls[0].function.name }}", "arguments": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}]{% endif %}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
PHI4_MINI = SPLIT_SYSTEM + (
    "<|system|>{{ system }}<|tool|>" + LISTED + "<|/tool|><|end|>{% for m in turns %}"
    "<|{{ 'tool_response' if m.role == 'tool' else m.role }}|>{{ m.content }}"
    "{% if m.tool_calls is defined %}<|tool_call|>"
    '[{"name": "{{ m.tool_calls[0].function.name }}", "arguments": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}]<|/tool_call|>{% endif %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% else %}<|endoftext|>{% endif %}"
)
PHI4_TOKENS = (
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<|tool|>"),
    *("<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>"),
)
INTERN = (
    "{{ bos_token }}"
    + CHATML_TOOLS
    + "{% for m in turns %}{% if m.role == 'tool' %}<|im_start|>environment name=<|plugin|>\n"
    "{{ m.content }}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls is defined %}<|action_start|><|plugin|>\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}<|action_end|>{% endif %}<|im_end|>\n"
    "{% endif %}{% endfor %}" + CHATML_PROMPT
)
MINIMAX = (
    SPLIT_SYSTEM
    + "]~!b[]~b]system\n{{ system }}\n"
    + LISTED
    + "[e~[\n{% for m in turns %}{% if m.role == 'tool' %}]~b]tool\n"
    "<response>{{ m.content }}</response>[e~[\n{% elif m.role == 'assistant' %}]~b]ai\n"
    + SPLIT_THOUGHT
    + "{{ text }}"
    "{% if m.tool_calls is defined %}{% if text %}{{ '\n' }}{% endif %}<minimax:tool_call>\n"
    '<invoke name="{{ m.tool_calls[0].function.name }}">\n'
    "{% for k, v in m.tool_calls[0].function.arguments.items() %}"
    '<parameter name="{{ k }}">{{ v if v is string else v | tojson }}</parameter>\n{% endfor %}'
    "</invoke>\n</minimax:tool_call>{% endif %}[e~[\n{% else %}]~b]user\n{{ m.content }}[e~[\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}]~b]ai\n<think>\n{% endif %}"
)


TOOLS = (
    Tool("search", "Searches.", "search[{words}]"),
    Tool("press", "Presses.", "click[{n}]", {"n": {"type": "integer"}}),
)
SCHEMAS = [tool.schema() for tool in TOOLS]
SEARCH, PRESS = write_call("search", {"words": "red fan"}), write_call("press", {"n": 3})
"""Two calls in our notation."""
TALK = ("A shop.", SEARCH, "A page.\nIt is long", f"I look.\n{SEARCH}", "Another.", PRESS, "Red.")
THINKING = (
    "A shop.",
    f"<think>\nA fan?\n</think>\n\n{SEARCH}",
    "A page.",
    f"<think>\nHm.\n</think>\n\nI look.\n{SEARCH}",
    "Another.",
)


@dataclass(frozen=True)
class ToolFamily:
    """One shape of template with functions."""

    name: str
    template: str
    special: tuple[str, ...]
    end: str
    """The token that ends a reply without a call."""
    call: str
    """How `search(words="red fan")` stands behind its prompt, its end included."""
    said: str
    """The same behind the words `I look.`"""
    result: str
    """What is written around a result."""
    bos: str | None = None
    thinks: str = "no"
    """As of `Family`; field: thoughts, and words beside a call, are passed in their own field."""
    call_id: str = "call00000"

    def tokenizer(self) -> Any:
        return tokenizer_of(self)


NAMED = '{"name": "search", "arguments": {"words": "red fan"}}'
HERMES = f"<tool_call>\n{NAMED}\n</tool_call>"
CODER = (
    "<tool_call>\n<function=search>\n<parameter=words>\nred fan\n</parameter>\n</function>\n"
    "</tool_call>"
)
GLM45_CALL = (
    "<tool_call>search\n<arg_key>words</arg_key>\n<arg_value>red fan</arg_value>\n</tool_call>"
)
HERMES_ROUND = "<|im_start|>user\n<tool_response>\nRESULT\n</tool_response><|im_end|>"
V3_CALL = '[{"name": "search", "arguments": {"words": "red fan"}, "id": "call00000"}]</s>'
LLAMA_CALL = '{"name": "search", "parameters": {"words": "red fan"}}'
EOT = "<|eot_id|>"
KIMI_CALL = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.search:0<|tool_call_argument_begin|>"
    '{"words": "red fan"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
)
HARMONY_CALL = (
    ' to=functions.search<|channel|>commentary json<|message|>{"words": "red fan"}<|call|>'
)
COHERE_CALL = (
    '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "search", "parameters": '
    '{"words": "red fan"}}]<|END_ACTION|><|END_OF_TURN_TOKEN|>'
)
INVOKE = (
    '<minimax:tool_call>\n<invoke name="search">\n<parameter name="words">red fan</parameter>\n'
    "</invoke>\n</minimax:tool_call>[e~["
)
V31_CALL = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>search<｜tool▁sep｜>{"words": "red fan"}'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
)
V3_FENCED = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>search\n```json\n"
    '{"words": "red fan"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>'
)
ROUND_ALIKE = f"<|tool_call|>[{NAMED}]"

TOOL_FAMILIES = [
    ToolFamily(
        "Qwen2.5, Hermes, SmolLM3",
        chatml("{% set text = m.content %}{{ text }}" + HERMES_CALLS),
        IM,
        IM[1],
        f"{HERMES}<|im_end|>",
        f"I look.\n{HERMES}<|im_end|>",
        HERMES_ROUND,
    ),
    ToolFamily(
        "Qwen3",
        chatml(
            SPLIT_THOUGHT
            + "{% if loop.index0 > ns.last and (loop.last or thought) %}<think>\n{{ thought }}\n"
            "</think>\n\n{% endif %}{{ text }}" + HERMES_CALLS
        ),
        IM,
        IM[1],
        f"{HERMES}<|im_end|>",
        f"I look.\n{HERMES}<|im_end|>",
        HERMES_ROUND,
        thinks="yes",
    ),
    ToolFamily(
        "Qwen3-Coder",
        chatml(
            "{{ m.content }}{% if m.content and m.tool_calls %}{{ '\n' }}{% endif %}"
            + QWEN_CODER_CALLS
        ),
        IM,
        IM[1],
        f"{CODER}<|im_end|>",
        f"I look.\n{CODER}<|im_end|>",
        HERMES_ROUND,
    ),
    ToolFamily(
        "Qwen3.5, Nemotron 3",
        chatml(
            SPLIT_THOUGHT
            + "{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
            "{{ text }}{% if text and m.tool_calls %}{{ '\n\n' }}{% endif %}" + QWEN_CODER_CALLS,
            prompt="{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        ),
        IM,
        IM[1],
        f"\n</think>\n\n{CODER}<|im_end|>",
        f"\n</think>\n\nI look.\n\n{CODER}<|im_end|>",
        HERMES_ROUND,
        thinks="opened",
    ),
    ToolFamily(
        "Mistral 7B v0.3",
        MISTRAL_V3.replace("BLANK", " "),
        MISTRAL_TOKENS,
        "</s>",
        f"[TOOL_CALLS] {V3_CALL}",
        f" I look.\n[TOOL_CALLS] {V3_CALL}",
        '[TOOL_RESULTS] {"content": RESULT, "call_id": "call00000"}[/TOOL_RESULTS]',
        "<s>",
    ),
    ToolFamily(
        "Mistral-Nemo",
        MISTRAL_V3.replace("BLANK", ""),
        MISTRAL_TOKENS,
        "</s>",
        f"[TOOL_CALLS]{V3_CALL}",
        f"I look.\n[TOOL_CALLS]{V3_CALL}",
        '[TOOL_RESULTS]{"content": RESULT, "call_id": "call00000"}[/TOOL_RESULTS]',
        "<s>",
    ),
    ToolFamily(
        "Mistral Small 3.2, Devstral",
        MISTRAL_V11,
        MISTRAL_TOKENS,
        "</s>",
        '[TOOL_CALLS]search[CALL_ID]call00000[ARGS]{"words": "red fan"}</s>',
        'I look.[TOOL_CALLS]search[CALL_ID]call00000[ARGS]{"words": "red fan"}</s>',
        "[TOOL_RESULTS]call00000[TOOL_CONTENT]RESULT[/TOOL_RESULTS]",
        "<s>",
    ),
    ToolFamily(
        "Llama 3.1 to 3.3",
        LLAMA31,
        (*LLAMA3, "<|python_tag|>", "<|eom_id|>"),
        EOT,
        f"{LLAMA_CALL}{EOT}",
        f"I look.\n{LLAMA_CALL}{EOT}",
        f'<|start_header_id|>ipython<|end_header_id|>\n\n"RESULT"{EOT}',
        LLAMA3[0],
    ),
    ToolFamily(
        "Llama 3.1, `<|python_tag|>`",
        LLAMA31_PYTHON,
        (*LLAMA3, "<|python_tag|>", "<|eom_id|>"),
        EOT,
        f"<|python_tag|>{LLAMA_CALL}<|eom_id|>",
        f"I look.\n<|python_tag|>{LLAMA_CALL}<|eom_id|>",
        f'<|start_header_id|>ipython<|end_header_id|>\n\n"RESULT"{EOT}',
        LLAMA3[0],
    ),
    ToolFamily(
        "GLM-4",
        GLM4,
        (*GLM, "<|observation|>"),
        "<|user|>",
        'search\n{"words": "red fan"}<|observation|>',
        '\nI look.\nsearch\n{"words": "red fan"}<|observation|>',
        "<|observation|>\nRESULT",
    ),
    ToolFamily(
        "GLM-4.5",
        GLM45,
        (*GLM, "<|observation|>"),
        "<|user|>",
        f"\n<think></think>\n{GLM45_CALL}<|observation|>",
        f"\n<think></think>\nI look.\n{GLM45_CALL}<|observation|>",
        "<|observation|>\n<tool_response>\nRESULT\n</tool_response>",
        thinks="yes",
    ),
    ToolFamily(
        "Kimi K2",
        KIMI,
        KIMI_TOKENS,
        "<|im_end|>",
        KIMI_CALL,
        f"I look.{KIMI_CALL}",
        "<|im_system|>tool<|im_middle|>## Return of functions.search:0\nRESULT<|im_end|>",
        call_id="functions.search:0",
    ),
    ToolFamily(
        "DeepSeek-V3, R1",
        deepseek(
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ m.tool_calls[0].function.name }}\n"
            "```json\n{{ m.tool_calls[0].function.arguments | tojson }}\n```<｜tool▁call▁end｜>"
        ).replace("</think>{% endif", "{% endif"),
        DEEPSEEK_TOKENS,
        DEEPSEEK[1],
        V3_FENCED,
        f"I look.{V3_FENCED}",
        "<｜tool▁output▁begin｜>RESULT<｜tool▁output▁end｜>",
        DEEPSEEK[0],
    ),
    ToolFamily(
        "DeepSeek-V3.1",
        deepseek(
            "<｜tool▁call▁begin｜>{{ m.tool_calls[0].function.name }}<｜tool▁sep｜>"
            "{{ m.tool_calls[0].function.arguments | tojson }}<｜tool▁call▁end｜>"
        ),
        DEEPSEEK_TOKENS,
        DEEPSEEK[1],
        V31_CALL,
        f"I look.{V31_CALL}",
        "<｜tool▁output▁begin｜>RESULT<｜tool▁output▁end｜>",
        DEEPSEEK[0],
    ),
    ToolFamily(
        "gpt-oss (harmony)",
        HARMONY_TOOLS,
        (*HARMONY_TOKENS, "<|call|>", "<|constrain|>"),
        "<|return|>",
        HARMONY_CALL,
        f"<|channel|>analysis<|message|>I look.<|end|><|start|>assistant{HARMONY_CALL}",
        '<|start|>functions.search to=assistant<|channel|>commentary<|message|>"RESULT"<|end|>',
        thinks="field",
    ),
    ToolFamily(
        "Command A",
        COHERE_TOOLS,
        COHERE_TOOL_TOKENS,
        "<|END_OF_TURN_TOKEN|>",
        COHERE_CALL,
        f"I look.{COHERE_CALL}",
        '<|START_TOOL_RESULT|>[{"tool_call_id": "0", "results": "RESULT"}]<|END_TOOL_RESULT|>',
        COHERE[0],
    ),
    ToolFamily(
        "Granite 3",
        GRANITE_TOOLS,
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"),
        "<|end_of_text|>",
        f"{ROUND_ALIKE}<|end_of_text|>",
        f"I look.{ROUND_ALIKE}<|end_of_text|>",
        "<|start_of_role|>tool_response<|end_of_role|>RESULT<|end_of_text|>",
    ),
    ToolFamily(
        "Phi-4-mini",
        PHI4_MINI,
        PHI4_TOKENS,
        "<|end|>",
        f"{ROUND_ALIKE}<|/tool_call|><|end|>",
        f"I look.{ROUND_ALIKE}<|/tool_call|><|end|>",
        "<|tool_response|>RESULT<|end|>",
    ),
    ToolFamily(
        "InternLM 2.5",
        INTERN,
        (*S, *IM, "<|action_start|>", "<|action_end|>", "<|plugin|>"),
        IM[1],
        f"<|action_start|><|plugin|>\n{LLAMA_CALL}<|action_end|><|im_end|>",
        f"I look.<|action_start|><|plugin|>\n{LLAMA_CALL}<|action_end|><|im_end|>",
        "<|im_start|>environment name=<|plugin|>\nRESULT<|im_end|>",
        "<s>",
    ),
    ToolFamily(
        "MiniMax-M2",
        MINIMAX,
        ("]~!b[", "]~b]", "[e~["),
        "[e~[",
        f"\n</think>\n\n{INVOKE}",
        f"\n</think>\n\nI look.\n{INVOKE}",
        "]~b]tool\n<response>RESULT</response>[e~[",
        thinks="opened",
    ),
]


def shown(family: ToolFamily, tokenizer: Any, messages: list[Message]) -> list[int]:
    """The prompt that `apply_chat_template` gives for the calls of a conversation."""
    talk: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "assistant":
            before, _, call = message["content"].partition("<tool_call>")
            name, arguments = ("press", {"n": 3}) if "press" in call else ("search", None)
            function = {"name": name, "arguments": arguments or {"words": "red fan"}}
            call_id = family.call_id.replace("search", name)
            calls = [{"type": "function", "id": call_id, "function": function}]
            talk.append({"role": "assistant", "content": before.strip(), "tool_calls": calls})
            if family.thinks == "field":
                words = before.replace("<think>", "").replace("</think>", "").split()
                talk[-1] |= {"content": "", "thinking": " ".join(words).replace("? I", "?\nI")}
                talk[-1]["thinking"] = talk[-1]["thinking"].replace("Hm. I", "Hm.\nI")
        elif message["role"] == "user" and talk and talk[-1]["role"] == "assistant":
            result = {"role": "tool", "tool_call_id": call_id, "name": name}
            talk.append({**result, "content": message["content"]})
        else:
            talk.append(dict(message))
    out = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tools=SCHEMAS)
    return out["input_ids"]


def texts_of(family: ToolFamily, texts: tuple[str, ...]) -> list[str]:
    opened = family.thinks == "opened"
    return [t.removeprefix("<think>").lstrip("\n") if opened else t for t in texts]


BEGIN = "<!-- generated: python -m tests.agents.tool_families -->\n"


def table() -> str:
    """What the codec makes of each family's calls, as a table in Markdown."""
    lines = [
        "| Family | Passes | A call of `search`, as it is learned | Words before it, in history |",
        "|---|---|---|---|",
    ]
    for family in TOOL_FAMILIES:
        codec = ToolCodec(family.tokenizer(), TOOLS)
        call = codec.tokenizer.decode(codec.reply_ids(SEARCH)).replace("\n", "⏎")
        history = codec.tokenizer.decode(
            codec.prompt(say("A shop.", f"I look.\n{SEARCH}", "A page."))
        )
        words = "stay" if "I look." in history else "dropped"
        passes = "yes" if _passes(family, codec) else "no"
        call = call.replace("|", "\\|")
        lines.append(
            f"| {family.name.replace('|', chr(92) + '|')} | {passes} | `{call}` | {words} |"
        )
    return "\n".join([*lines, ""])


def _passes(family: ToolFamily, codec: ToolCodec) -> bool:
    for texts in (TALK, THINKING):
        messages = say(*texts_of(family, texts), system="Buy.")
        encoded = codec.encode(messages)
        for step, (start, end) in enumerate(encoded.replies):
            reply, state = messages[2 + 2 * step]["content"], messages[: 2 + 2 * step]
            read = parse(codec.decode(encoded.ids[start:end]))
            if encoded.state(step) != shown(family, codec.tokenizer, state):
                return False
            if read.thought != parse(reply).thought or not is_call(read.action):
                return False
    return True


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    write_text(PAGE, before + BEGIN + table() + END + rest.partition(END)[2])
