"""Calls of functions: models' notations, servers, and local models' own templates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from stepagent import envs
from stepagent.agents import make_agent
from stepagent.agents.chat import ChatCodec
from stepagent.agents.core import Agent
from stepagent.agents.openai import OpenAIAgent
from stepagent.agents.responses import read_completion
from stepagent.agents.tool_calls import split_call, structured, translated
from stepagent.agents.tool_template import ToolCodec
from stepagent.agents.transformers import TransformersAgent
from stepagent.envs.react import PromptStyle, cut, parse
from stepagent.envs.tools import Tool, write_call
from stepagent.eval.rollout import run_episodes
from tests.agents.conversations import say, turn
from tests.agents.tiny_models import TEMPLATE, make_model, make_tokenizer
from tests.agents.tool_families import TOOL_FAMILIES
from tests.servers import Scripted, running

TOOLS = (
    Tool("search", "Searches.", "search[{words}]"),
    Tool("press", "Presses.", "click[{n}]", {"n": {"type": "integer"}}),
)
CALL = write_call("search", {"words": "red fan"})


NOTATIONS = [
    CALL,
    "<tool_call>\n<function=search>\n<parameter=words>\nred fan\n</parameter>\n</function>\n"
    "</tool_call>",
    "<tool_call>search\n<arg_key>words</arg_key>\n<arg_value>red fan</arg_value>\n</tool_call>",
    '{"name": "search", "parameters": {"words": "red fan"}}',
    '<|python_tag|>{"name": "search", "parameters": {"words": "red fan"}}<|eom_id|>',
    '{"type": "function", "function": {"name": "search", "arguments": {"words": "red fan"}}}',
    '[TOOL_CALLS] [{"name": "search", "arguments": {"words": "red fan"}, "id": "abc123def"}]',
    '[{"name": "search", "arguments": {"words": "red fan"}}, {"name": "x", "arguments": {}}]',
    '[TOOL_CALLS]search[ARGS]{"words": "red fan"}',
    "<|start|>assistant<|channel|>commentary to=functions.search <|constrain|>json<|message|>"
    '{"words": "red fan"}<|call|>',
    'commentary to=functions.search json{"words": "red fan"}',
    *(family.call for family in TOOL_FAMILIES if not family.call.startswith("\n")),
    '[TOOL_CALLS]search{"words": "red fan"}',
    '<tool_call>[{"name": "search", "arguments": {"words": "red fan"}}]</tool_call>',
    '<TOOLCALL>[{"name": "search", "arguments": {"words": "red fan"}}]</TOOLCALL>',
    'Action: ```json\n[{"tool_name": "search", "parameters": {"words": "red fan"}}]\n```',
    '<｜DSML｜function_calls>\n<｜DSML｜invoke name="search">\n<｜DSML｜parameter name="words" '
    'string="true">red fan</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
]
"""The same call, as models write it."""


@pytest.mark.parametrize("text", NOTATIONS)
def test_models_notations_are_read(text: str):
    for before in ("", "I look for it.\n"):
        call = split_call(translated(before + text))
        assert call == (before.strip(), "search", {"words": "red fan"})


@pytest.mark.parametrize("text", NOTATIONS)
def test_a_call_that_is_rehearsed_in_a_thought_is_none(text: str):
    """Neither what the agent does nor where its thought ends."""
    rehearsed = text.replace("search", "press").replace("red fan", "blue")
    for opening in ("<think>\n", ""):
        thought = f"{opening}Perhaps\n{rehearsed}\nor not.\n</think>"
        reply = translated(f"{thought}\n\nI look.\n{text}")
        said, name, arguments = split_call(reply) or ("", "", {})
        assert (name, arguments) == ("search", {"words": "red fan"})
        assert said.startswith(f"{opening}Perhaps\n")
        assert said.endswith("</think>\n\nI look.")
        assert parse(reply).action == CALL.replace("\n", "")
    unfinished = f"<think>\nPerhaps\n{text}"
    assert translated(unfinished) == unfinished
    assert split_call(unfinished) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "I look for it.", "{", '{"a": 1}', "[1, 2]", '{"name": 3, "arguments": {}}', "[[["),
        *("Thought: {x}\nAction: search[a]", '{"name": "x"' * 3000, "\n{" * 20_000),
        *('[{"name"', "<tool_call", "[TOOL_CALLS]", "[]", '[{"x": 1}, 2]', "[" * 30_000),
    ],
)
def test_a_text_without_a_call_stays(text: str):
    assert translated(text) == text


def test_broken_calls_stay_calls():
    for text in (
        *('[TOOL_CALLS]search[ARGS]{"words": ', "commentary to=functions.search json{x"),
        *('[TOOL_CALLS] [{"name": "search", "arg', "<|tool_call|>[{}]", "<|python_tag|>{"),
    ):
        assert parse(translated(text)).action.startswith("<tool_call>")


def test_a_servers_conversation_is_structured():
    broken = "<tool_call>{broken</tool_call>"
    messages = say("go", f"I look.\n{CALL}", "a page", broken, "no", "bare", "?", system="s")
    sent = structured(messages)
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "user"]
    assert [message["role"] for message in sent] == roles
    call = sent[2]["tool_calls"][0]
    assert sent[2]["content"] == "I look."
    assert call["function"] == {"name": "search", "arguments": '{"words": "red fan"}'}
    assert sent[3] == {"role": "tool", "tool_call_id": call["id"], "content": "a page"}
    assert sent[4] == {"role": "assistant", "content": broken}  # templates would not read it
    assert messages[2]["content"] == f"I look.\n{CALL}"


# Servers ----------------------------------------------------------------------------------------


class CallingServer(Scripted):
    """Answers with calls, of which it keeps a list."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def read(self, path: str, body: bytes) -> Any:
        return json.loads(body)

    def answer(self, request: Any) -> bytes:
        function = self.calls[min(len(self.seen), len(self.calls)) - 1]
        call = {"id": "x", "type": "function", "function": function}
        message = {"role": "assistant", "content": "I see.", "tool_calls": [call]}
        return json.dumps(
            {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
        ).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CallingServer]:
    server = CallingServer()
    with running(server, monkeypatch):
        yield server


def test_a_server_gets_functions_and_gives_calls(server: CallingServer):
    server.calls = [
        {"name": "search", "arguments": '{"keywords": "red fan"}'},
        {"name": "fly", "arguments": "{}"},
        {"name": "search", "arguments": '{"keywords": '},
        {"name": "click", "arguments": {"element": "back to search"}},
    ]
    agent = OpenAIAgent("m", base_url=server.address, format="tools")
    env = envs.make("stepagent/WebShop-v0", split="test")
    tasks = env.tasks[:1]
    episode = next(run_episodes("stepagent/WebShop-v0", agent, tasks, env_args={"max_steps": 4}))
    request = server.seen[-1]
    assert [tool["function"]["name"] for tool in request["tools"]] == ["search", "click"]
    assert [m["role"] for m in request["messages"]][-2:] == ["assistant", "user"]  # it was broken
    assert request["messages"][3]["role"] == "tool"
    actions = [step.action for step in episode.steps]
    assert actions[0] == "search[red fan]"
    assert actions[1].startswith("<tool_call>")
    assert [step.valid for step in episode.steps] == [True, False, False, True]
    assert "no function 'fly'" in episode.steps[2].observation
    assert "not valid JSON" in episode.steps[3].observation
    assert episode.steps[0].thought == "I see."
    assert (episode.error, episode.fingerprint["format"]) == ("", "tools")
    agent.close()


def test_older_notations_of_calls_are_read():
    for message in (
        {"content": None, "function_call": {"name": "search", "arguments": '{"words": "red fan"}'}},
        {"tool_calls": [{"function": {"name": "search", "arguments": {"words": "red fan"}}}, 3]},
    ):
        completion = read_completion(json.dumps({"choices": [{"message": message}]}))
        assert completion.text == CALL  # type: ignore[union-attr]
        assert completion.ending == ""  # type: ignore[union-attr]
    for odd in ([], [3], [{}], [{"function": 3}], "x"):
        body = json.dumps({"choices": [{"message": {"content": "look", "tool_calls": odd}}]})
        assert "look" in read_completion(body).text


# The same scores in either format ----------------------------------------------------------------


@pytest.mark.parametrize("env_id", envs.ENTRY_POINTS)
@pytest.mark.parametrize("spec", ["expert", "random"])
def test_the_same_scores_in_either_format(env_id: str, spec: str):
    env = envs.make(env_id, split="dev")
    tasks = list(env.tasks[:2])
    env.close()

    def outcomes(agent: Agent) -> list[Any]:
        arguments = {"max_steps": 3} if spec == "random" else {}
        episodes = run_episodes(env_id, agent, tasks, split="dev", workers=1, env_args=arguments)
        return [
            (t.task_id, t.reward, t.success, t.metrics, t.error, t.final_observation, t.steps)
            for t in episodes
        ]

    react, tools = make_agent(spec), make_agent(spec, format="tools")
    assert outcomes(react) == outcomes(tools)
    assert tools.style == PromptStyle(format="tools")


# Local models -----------------------------------------------------------------------------------

_HEAD = (
    "{% if tools %}<|im_start|>system\n{% if messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] }}\n\n{% endif %}# Tools\n{% for t in tools %}{{ t | tojson }}\n"
    "{% endfor %}<|im_end|>\n{% elif messages[0]['role'] == 'system' %}<|im_start|>system\n"
    "{{ messages[0]['content'] }}<|im_end|>\n{% endif %}"
)
_TAIL = (
    "{% elif m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HERMES = (
    _HEAD + "{% for m in messages %}{% if m['role'] == 'tool' %}<|im_start|>user\n<tool_response>\n"
    "{{ m['content'] }}\n</tool_response><|im_end|>\n{% elif m['tool_calls'] %}<|im_start|>"
    "assistant\n{{ m['content'] }}{% if m['content'] %}{{ '\n' }}{% endif %}<tool_call>\n"
    "{% set f = m['tool_calls'][0]['function'] %}"
    '{"name": "{{ f[\'name\'] }}", "arguments": {{ f["arguments"] | tojson }}}\n</tool_call>'
    "<|im_end|>\n" + _TAIL
)
LLAMA = (
    _HEAD + "{% for m in messages %}{% if m['role'] == 'tool' %}<|im_start|>ipython\n"
    "{{ m['content'] }}<|im_end|>\n{% elif m['tool_calls'] %}<|im_start|>assistant\n"
    "{% set f = m['tool_calls'][0]['function'] %}"
    '{"name": "{{ f[\'name\'] }}", "parameters": {{ f["arguments"] | tojson }}}<|im_end|>\n' + _TAIL
)


def tokenizer_with(template: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_tokens_are_those_of_the_models_own_tool_template():
    tokenizer = tokenizer_with(HERMES)
    codec = ToolCodec(tokenizer, TOOLS)
    messages = say("a shop", f"I look.\n{CALL}", "a page", CALL, "another", system="Buy.")
    call = {"type": "function", "function": {"name": "search", "arguments": {"words": "red fan"}}}
    expected = [
        *messages[:2],
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "content": "a page"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "another"},
    ]
    text = tokenizer.apply_chat_template(
        expected,
        tokenize=False,
        add_generation_prompt=True,
        tools=[tool.schema() for tool in TOOLS],
    )
    encoded = codec.encode(messages)
    assert tokenizer.decode(encoded.ids) == text
    assert codec.prompt(messages) == encoded.ids
    start, end = encoded.replies[0]
    assert tokenizer.decode(encoded.ids[start:end]) == f"I look.\n{CALL}<|im_end|>"
    assert codec.encode(messages).ids == encoded.ids  # nothing is wrapped twice


def test_another_familys_notation_is_written_and_read():
    tokenizer = tokenizer_with(LLAMA)
    codec = ToolCodec(tokenizer, TOOLS)
    own = '{"name": "search", "parameters": {"words": "red fan"}}'
    encoded = codec.encode(say("a shop", CALL, "a page"))
    start, end = encoded.replies[0]
    assert tokenizer.decode(encoded.ids[start:end]) == f"{own}<|im_end|>"
    assert codec.decode(encoded.ids[start : end - 1]) == CALL
    assert "<|im_start|>ipython\na page<|im_end|>" in tokenizer.decode(encoded.ids)


def test_a_template_without_functions_has_them_in_the_system_message():
    codec = ToolCodec(tokenizer_with(TEMPLATE), TOOLS)
    for system in ("", "Buy."):
        text = codec.tokenizer.decode(codec.encode(say("a shop", CALL, system=system)).ids)
        assert text.count('"name": "press"') == 1
        assert text.endswith(f"{CALL}<|im_end|>")
    plain = ChatCodec(codec.tokenizer)
    assert '"press"' not in plain.decode(plain.encode(say("a shop")).ids)


@pytest.mark.parametrize("template", [TEMPLATE, HERMES])
def test_a_local_model_plays_with_functions(template: str):
    tokenizer = tokenizer_with(template)
    model = make_model("llama", len(tokenizer), max_position_embeddings=8192)
    agent = TransformersAgent(
        model, tokenizer, max_new_tokens=8, format="tools", example=False, batch_size=2
    )
    env = envs.make("stepagent/ALFWorld-v0", split="dev")
    episodes = list(
        run_episodes(
            "stepagent/ALFWorld-v0",
            agent,
            list(env.tasks[:2]),
            split="dev",
            env_args={"max_steps": 2},
        )
    )
    assert [t.error for t in episodes] == ["", ""]
    prompt = agent._codec(env.tools).prompt(say("x", cut("y"), "z"))
    assert '"go_to"' in tokenizer.decode(prompt)
    assert len(agent._tool_codecs) == 1
    assert turn("a", say("x"), env).tools(agent.style) == env.tools
    env.close()


@pytest.mark.parametrize("name", ["gpt-oss (harmony)", "GLM-4.5", "Mistral 7B v0.3"])
def test_a_local_model_speaks_its_own_notation(name: str):
    """It ends a call with the token that its template does, and its special tokens are read."""
    family = next(family for family in TOOL_FAMILIES if family.name == name)
    tokenizer = family.tokenizer()
    model = make_model("llama", len(tokenizer))
    agent = TransformersAgent(model, tokenizer, format="tools", max_new_tokens=64)
    waiting = turn("a", say("A shop."), SimpleNamespace(tools=TOOLS))
    [request] = agent._requests([waiting])
    call = tokenizer(family.call, add_special_tokens=False)["input_ids"]
    assert request.ids == agent._codec(TOOLS).prompt(say("A shop."))
    assert call[-1] in agent._generator.ends
    reply = agent._text("a", call)
    assert parse(reply) == parse(CALL)
    assert reply.ending == ""
    cut_off = agent._text("a", call[:-6])
    assert not set(family.special) & set(cut_off.split())
    agent.forget("a")
    assert not agent._codec_of
