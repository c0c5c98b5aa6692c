"""The HTTP agent against six kinds of server and hosted APIs, each with its quirks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from stepagent.agents.chat import ChatCodec
from stepagent.agents.completions import ApiError, NoAccess
from stepagent.agents.core import ModelReply
from stepagent.agents.openai import OpenAIAgent
from stepagent.agents.responses import Rejection
from stepagent.envs.react import PromptStyle, parse
from stepagent.envs.tools import Tool, write_call
from stepagent.envs.trajectory import Step
from tests.agents.chat_server import KEY, ChatServer
from tests.agents.conversations import say, turn
from tests.agents.server_kinds import KINDS, Kind, KindServer
from tests.agents.tiny_models import make_tokenizer
from tests.servers import Scripted, running

by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts servers, which end with the test."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ExitStack() as stack:

        def begin(server: Any) -> Any:
            stack.enter_context(running(server, monkeypatch))
            return server

        yield begin


def agent_for(*servers: Scripted, path: str = "/v1", **options: Any) -> OpenAIAgent:
    return OpenAIAgent(
        "some-model",
        base_url=[server.address + path for server in servers],
        **{"backoff": 0.02, "retries": 2, "timeout": 5.0, "max_new_tokens": 100, **options},
    )


def ask(agent: OpenAIAgent, *texts: str, system: str = "", key: Any = "a") -> ModelReply:
    reply = agent.act([turn(key, say(*texts, system=system))])[0]
    assert isinstance(reply, ModelReply)
    return reply


@by_kind
def test_an_address_without_its_version_is_understood(start: Any, kind: Kind):
    server = start(KindServer(kind))
    agent = agent_for(server, path="")
    assert ask(agent, "go in") == ask(agent, "go in") == "Action: go in"
    tries = 2 if len(kind.paths) == 1 else 1
    assert len(server.seen) == tries + 1
    assert server.seen[-1]["path"] in kind.paths
    assert agent_for(server, path="/v1/chat/completions").base_url == f"{server.address}/v1"
    assert "/v1" not in agent.fingerprint()["base_url"]


def test_an_address_is_completed_once_however_many_ask(start: Any):
    """Requests that are under way when the first is refused try again, too."""
    server = start(ChatServer())
    for wait in (0.2, 0.4, 0.6):
        server.plan(404, json.dumps({"detail": "Not Found"}), wait=wait)
    agent = agent_for(server, path="", concurrency=3)
    turns = [turn(key, say(key)) for key in ("a", "b", "c")]
    assert agent.act(turns) == ["Action: a", "Action: b", "Action: c"]
    assert len(server.seen) == 6
    for _ in range(3):
        server.plan(404, json.dumps({"detail": "no such model"}))
    with pytest.raises(NoAccess, match="no model 'some-model'"):
        agent.act(turns)


@by_kind
def test_a_refused_system_role_goes_before_the_first_observation(start: Any, kind: Kind):
    server = start(KindServer(kind, has_system=False))
    agent = agent_for(server)
    assert ask(agent, "go in", system="Be brief.") == "Action: Be brief. go in"
    assert server.seen[-1]["messages"] == say("Be brief.\n\ngo in")
    ask(agent, "go out", system="Be brief.")
    assert len(server.seen) == 3  # refused once, never sent again
    assert not any(m["role"] == "system" for m in server.seen[-1]["messages"])


@by_kind
def test_a_long_request_first_gets_a_lower_limit(
    start: Any, kind: Kind, caplog: pytest.LogCaptureFixture
):
    server = start(KindServer(kind, context=1000))
    agent = agent_for(server, max_new_tokens=500)
    messages = ["the task " + "x " * 300, "Action: look", "y " * 400]
    reply = ask(agent, *messages)
    assert server.seen[-1]["messages"] == say(*messages)  # nothing was left out
    assert 64 <= server.seen[-1]["max_tokens"] < 500
    assert reply.startswith("Action: y y y")
    counts = agent.statistics()
    assert (counts["prompts_cut"], counts["limits_lowered"]) == (0, 1)
    assert "--max-new-tokens" in caplog.text


@by_kind
def test_a_prompt_that_is_too_long_itself_loses_its_middle(start: Any, kind: Kind):
    server = start(KindServer(kind, context=1000))
    agent = agent_for(server, max_new_tokens=100)
    messages = ["the task", *(f"{i} " * 100 for i in range(20)), "at last"]
    assert ask(agent, *messages, "and now?").startswith("Action: and now?")
    sent = server.seen[-1]["messages"]
    assert sent[0]["content"].startswith("the task\n\n[")
    assert sent[-1]["content"] == "and now?"
    assert agent.statistics()["prompts_cut"] == 1
    assert sum(len(m["content"].split()) for m in sent) + 64 <= 1000


@by_kind
def test_what_the_model_thought_is_a_thought_and_stays_out_of_history(start: Any, kind: Kind):
    server = start(KindServer(kind, thinks=5))
    agent = agent_for(server)
    reply = ask(agent, "go in")
    assert parse(reply).action == "go in"
    assert parse(reply).thought == "hm hm hm hm hm"
    ask(agent, "go in", reply, "go on")
    sent = server.seen[-1]["messages"][1]
    assert sent["role"] == "assistant"
    if kind.thought:
        assert sent == {"role": "assistant", "content": "Action: go in"}
        keeping = agent_for(server, history_thoughts="keep")
        ask(keeping, "x")
        ask(keeping, "go in", reply, "go on")
        assert server.seen[-1]["messages"][1]["reasoning_content"] == "hm hm hm hm hm"
    else:
        assert sent["content"] == reply  # the server's template decides
    dropping = agent_for(server, history_thoughts="drop")
    ask(dropping, "go in", reply, "go on")
    assert server.seen[-1]["messages"][1]["content"] == "Action: go in"


@by_kind
def test_a_reply_at_the_limit_says_so(start: Any, kind: Kind):
    server = start(KindServer(kind, thinks=5))
    assert ask(agent_for(server, max_new_tokens=3), "go in").ending == "length"
    assert ask(agent_for(server), "go in").ending == ""


# Token ids --------------------------------------------------------------------------------------


@by_kind
def test_token_ids_are_recorded_where_the_server_gives_them(
    start: Any, kind: Kind, caplog: pytest.LogCaptureFixture
):
    server = start(KindServer(kind, thinks=2))
    agent = agent_for(server, record_tokens=True)
    reply = ask(agent, "go in")
    assert parse(reply).action == "go in"
    assert reply.tokens == ((2, 2, 7, 2, 2) if kind.ids else ())
    assert ("gives no token ids" in caplog.text) == (not kind.ids)
    asked = {"return_token_ids", "return_tokens"}
    assert len(server.seen) == (3 if kind.unknown else 1)
    ask(agent, "go on")
    assert asked & set(server.seen[-1]) == (set() if kind.unknown else asked)
    assert len(server.seen) == (4 if kind.unknown else 2), "what is refused is not sent again"
    assert ask(agent_for(server), "go in").tokens == (), "nobody asked for them"
    assert not asked & set(server.seen[-1])


@pytest.mark.parametrize("ids", [[], "ab", [1, -1], [1, None], [True], [2**40], {"0": 1}, [[1]]])
def test_nonsense_for_token_ids_is_none(start: Any, ids: Any):
    server = start(ChatServer())
    choice = {"message": {"content": "look"}, "token_ids": ids, "logprobs": ids}
    server.plan(200, json.dumps({"choices": [choice], "__verbose": ids}))
    reply = ask(agent_for(server, record_tokens=True), "x")
    assert (reply, reply.tokens) == ("look", ())


def test_token_ids_beside_log_probabilities(start: Any):
    server = start(ChatServer())
    content = [{"id": 5, "token": "lo", "logprob": -1.0}, {"id": 6, "token": "ok", "logprob": 0.0}]
    choice = {"message": {"content": "look"}, "logprobs": {"content": content}}
    server.plan(200, json.dumps({"choices": [choice]}))
    agent = agent_for(server, record_tokens=True, request={"logprobs": True})
    assert ask(agent, "x").tokens == (5, 6)
    assert server.seen[-1]["logprobs"] is True


def test_cached_replies_have_their_token_ids(start: Any, tmp_path: Any):
    server = start(KindServer(KINDS[0]))
    for record in (True, False, True, False):
        agent = agent_for(server, record_tokens=record, cache=tmp_path / "replies")
        assert ask(agent, "go in").tokens == ((7, 2, 2) if record else ())
        agent.close()
    assert len(server.seen) == 2


def test_token_ids_of_a_server_reach_training(start: Any):
    """Those that spell the reply in the policy's tokenizer; of others, the text is encoded."""
    tokenizer = make_tokenizer()
    codec = ChatCodec(tokenizer)
    text = "<think>\nhm\n\n</think>\nAction: go"

    def spelled(text: str) -> list[int]:
        return [i for c in text for i in tokenizer(c, add_special_tokens=False)["input_ids"]]

    drawn = spelled(text)
    assert drawn != codec.body_ids(text)
    server = start(ChatServer())
    message = {"content": "Action: go", "reasoning_content": "hm"}
    for ids in (
        [*drawn, codec.end_of_turn_id],
        [*drawn, *spelled("\nObservation: a hall")],
        [*drawn, len(tokenizer) + 5],
        [7, 8, 9],
    ):
        choice = {"message": message, "token_ids": ids, "finish_reason": "stop"}
        server.plan(200, json.dumps({"choices": [choice]}))
        agent = agent_for(server, record_tokens=True)
        step = Step.of("a door", ask(agent, "a door"), PromptStyle())
        assert step.tokens == tuple(ids)
        messages = say("a door", step.text(PromptStyle()))
        learned = codec.encode(messages, tokens=[step.tokens])
        start_, end = learned.replies[0]
        if ids[: len(drawn)] == drawn and max(ids) < len(tokenizer):
            end_of_turn = [codec.end_of_turn_id] if ids[-1] == codec.end_of_turn_id else []
            assert learned.ids[start_:end] == [*drawn, *end_of_turn]
        else:
            assert learned == codec.encode(messages)


# Endings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "text", "ending"),
    [
        ({"finish_reason": "stop", "message": {"content": "look"}}, "look", ""),
        ({"finish_reason": "content_filter", "message": {"content": "lo"}}, "lo", "filter"),
        ({"finish_reason": "SAFETY", "message": {"content": None}}, "", "filter"),
        ({"finish_reason": "content_filter: PROHIBITED_CONTENT"}, "", "filter"),
        ({"finish_reason": "content_filter", "message": {}}, "", "filter"),
        ({"message": {"content": None, "refusal": "I cannot."}}, "I cannot.", "refusal"),
        ({"finish_reason": "stop", "message": {"content": ""}}, "", "empty"),
        ({"finish_reason": None, "message": {"content": None}}, "", "empty"),
        ({"finish_reason": "model_length", "message": {"content": "lo"}}, "lo", "length"),
        ({"finish_reason": "eos_token", "message": {"content": "look"}}, "look", ""),
    ],
)
def test_each_ending_is_an_outcome_of_its_own(
    start: Any, choice: dict[str, Any], text: str, ending: str
):
    server = start(ChatServer())
    server.plan(200, json.dumps({"choices": [choice]}))
    reply = ask(agent_for(server), "hi")
    assert (str(reply), reply.ending) == (text, ending)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "…", "code": "content_filter", "status": 400}}),
        (400, {"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}}),
        (403, {"error": {"code": 403, "message": "Your input was flagged", "metadata": {}}}),
        (200, {"error": {"code": 403, "message": "The prompt was flagged"}}),
    ],
)
def test_a_filtered_prompt_is_a_reply_that_ended_so(start: Any, status: int, body: Any):
    server = start(ChatServer())
    server.plan(status, json.dumps(body))
    reply = ask(agent_for(server), "hi")
    assert (reply, reply.ending) == ("", "filter")


def test_an_error_with_status_200_is_an_error(start: Any):
    server = start(ChatServer())
    server.plan(200, json.dumps({"error": {"code": 429, "message": "slow down"}}))
    assert ask(agent_for(server), "hi") == "Action: hi"
    server.plan(200, json.dumps({"error": {"code": 400, "message": "no such thing"}}))
    with pytest.raises(ApiError, match=r"status 400.*no such thing"):
        ask(agent_for(server), "hi")


def test_parts_of_a_content_are_thought_or_text(start: Any):
    server = start(ChatServer())
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "It is shut."}]}
    content = [thinking, {"type": "text", "text": "Action: "}, {"type": "text", "text": "open"}, 7]
    server.plan(200, json.dumps({"choices": [{"message": {"content": content}}]}))
    assert parse(ask(agent_for(server), "hi")) == parse("Thought: It is shut.\nAction: open")


def test_endings_and_thoughts_are_cached(start: Any, tmp_path: Any):
    server = start(KindServer(KINDS[0], thinks=4))
    options = {"cache": tmp_path / "replies.sqlite", "max_new_tokens": 5}
    first, again = (ask(agent_for(server, **options), "go in now") for _ in range(2))
    assert first == again == "<think>\nhm hm hm hm\n</think>\n\nAction:"
    assert (first.ending, again.ending) == ("length", "length")
    assert len(server.seen) == 1


# Options ----------------------------------------------------------------------------------------


def test_thinking_and_further_fields_are_in_the_request(start: Any):
    server = start(KindServer(KINDS[0]))
    plain = agent_for(server, max_new_tokens=None)
    ask(plain, "hi")
    assert server.seen[-1]["max_tokens"] == 256
    assert "stop" in server.seen[-1]
    on = agent_for(
        server,
        max_new_tokens=None,
        enable_thinking=True,
        reasoning_effort="low",
        request={"top_k": 20},
    )
    server.context = 10_000
    ask(on, "hi")
    request = server.seen[-1]
    assert request["chat_template_kwargs"] == {"enable_thinking": True}
    assert (request["reasoning_effort"], request["top_k"]) == ("low", 20)
    assert request["max_tokens"] == 4096  # there is more to write
    assert "stop" not in request  # a thought may hold such a text
    assert "top_k" in on.fingerprint()["request"]
    assert "request" not in plain.fingerprint()
    with pytest.raises(ValueError, match="request cannot set messages"):
        agent_for(server, request={"messages": []})
    with pytest.raises(ValueError, match="history_thoughts is 'all'"):
        agent_for(server, history_thoughts="all")


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        *(("gpt-4o", 256), ("gpt-4.1-mini", 256), ("Qwen/Qwen2.5-7B-Instruct", 256)),
        *(("o3-mini", 4096), ("openai/gpt-oss-20b", 4096), ("deepseek-ai/DeepSeek-R1", 4096)),
        *(("Qwen/Qwen3-8B", 4096), ("Qwen/Qwen3-4B-Instruct-2507", 256), ("qwq:32b", 4096)),
        *(("deepseek-reasoner", 4096), ("mistral-small", 256), ("tool3", 256)),
    ],
)
def test_the_default_limit_depends_on_whether_the_model_thinks(model: str, limit: int):
    assert f"'max_new_tokens': {limit}" in OpenAIAgent(model).fingerprint()["decoding"]


# Several servers --------------------------------------------------------------------------------


def test_several_servers_share_the_load_and_conversations_stay(start: Any):
    servers = [start(ChatServer()) for _ in range(3)]
    for server in servers:
        server.delay = 0.1
    agent = agent_for(*servers, concurrency=6)
    turns = [turn(i, say(f"n{i}")) for i in range(12)]
    assert agent.act(turns) == [f"Action: n{i}" for i in range(12)]
    first = [{m["messages"][0]["content"] for m in server.seen} for server in servers]
    assert all(len(seen) >= 2 for seen in first)
    again = [turn(i, say(f"n{i}", "Action: x", "y")) for i in range(12)]
    agent.act(again)
    assert [{m["messages"][0]["content"] for m in server.seen} for server in servers] == first
    for i in range(12):
        agent.forget(i)
    assert not agent._client._places


def test_a_server_that_is_down_is_passed_over(start: Any):
    up, down = start(ChatServer()), ChatServer()
    down.server_close()
    agent = agent_for(down, up, backoff=5.0)
    assert [ask(agent, f"n{i}", key=i) for i in range(4)] == [f"Action: n{i}" for i in range(4)]
    assert agent.statistics()["retries"] == 1
    assert len(up.seen) == 4


def test_servers_are_named_in_one_text_too(start: Any):
    one, two = start(ChatServer()), start(ChatServer())
    agent = OpenAIAgent("m", base_url=f"{one.url}, {two.url}/")
    assert agent.base_url == f"{one.url},{two.url}"
    with pytest.raises(ValueError, match="must start with http"):
        OpenAIAgent("m", base_url=f"{one.url},localhost:80")


# What is shown ----------------------------------------------------------------------------------


def test_a_key_is_masked_only_in_what_is_shown(start: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "max_tokens")  # read, the answer must not be masked
    server = start(ChatServer())
    server.plan(400, "x" * 400 + " Unsupported parameter: 'max_tokens' is not supported")
    agent = agent_for(server, max_new_tokens=9)
    assert ask(agent, "hi") == "Action: hi"
    assert server.seen[-1]["max_completion_tokens"] == 9
    monkeypatch.setenv("OPENAI_API_KEY", "a")
    server.plan(400, "a key a of a server")
    with pytest.raises(ApiError, match=r"'\*\*\* key \*\*\* of \*\*\* server'"):
        ask(agent_for(server), "hi")


def test_no_password_of_an_address_is_shown(start: Any):
    server = start(ChatServer())
    server.plan(400, "no")
    agent = OpenAIAgent("m", base_url=server.url.replace("//", "//me:secret@"))
    with pytest.raises(ApiError) as error:
        ask(agent, "hi")
    assert "secret" not in str(error.value)
    assert "secret" not in str(agent.fingerprint())


@pytest.mark.parametrize(
    "body", ["", "[]", "[1]", "{}", '{"error": []}', '{"error": 3}', "[" * 5000, '{"detail": {}}']
)
def test_odd_errors_are_read(body: str):
    rejection = Rejection.read(400, body)
    assert not rejection.too_long
    assert not rejection.filtered
    assert not rejection.no_system_role
    assert (rejection.limit, rejection.prompt) == (None, None)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "text/plain; charset=latin-1"])
def test_an_answer_is_read_as_json_whatever_its_headers_say(start: Any, kind: str):
    server = start(ChatServer())
    body = json.dumps(
        {"choices": [{"message": {"content": "Action: café ☕"}}]}, ensure_ascii=False
    )
    server.plan(200, b"\xef\xbb\xbf" + body.encode(), Content_Type=kind)
    assert ask(agent_for(server), "hi") == "Action: café ☕"


def test_the_prompts_ids_are_recorded_with_the_replys(start: Any, tmp_path: Any):
    server = start(KindServer(KINDS[0]))
    for _ in range(2):  # the second from the cache
        agent = agent_for(server, record_tokens=True, cache=tmp_path / "replies")
        assert ask(agent, "go in").prompt_tokens == (1, 1)
        agent.close()
    assert len(server.seen) == 1
    assert ask(agent_for(server), "go in").prompt_tokens == ()


@by_kind
def test_functions_that_a_server_refuses_are_listed_in_the_instruction(
    start: Any, kind: Kind, caplog: pytest.LogCaptureFixture
):
    server = start(KindServer(kind, has_tools=False))
    agent = agent_for(server, format="tools")
    call = write_call("search", {"words": "red fan"})
    env = SimpleNamespace(tools=(Tool("search", "Looks for words.", "search[{words}]"),))
    messages = say("a shop", f"I search.\n\n{call}", "a red fan", system="Be brief.")
    for key in ("a", "b"):
        assert agent.act([turn(key, messages, env)])[0] == "Action: a red fan"
    refused, *listed = server.seen
    assert (refused["messages"][3]["role"], len(refused["tools"])) == ("tool", 1)
    assert len(listed) == 2, "what is refused is not sent again"
    for request in listed:
        assert "tools" not in request
        assert [m["role"] for m in request["messages"]] == ["system", "user", "assistant", "user"]
        assert request["messages"][1:] == messages[1:]
        system = request["messages"][0]["content"]
        assert system.startswith("Be brief.\n\nThese are the functions:")
        assert "Looks for words." in system
    assert caplog.text.count("takes no functions as it is served") == 1


def test_other_errors_are_not_about_functions():
    for status, message in (
        (400, "maximum context length is 9 tokens, however your messages and tools resulted in 10"),
        (400, "temperature is not supported"),
        (429, "this tool requires a pause"),
        (400, "the system role is unsupported"),
    ):
        body = json.dumps({"error": {"message": message}})
        assert not Rejection.read(status, body).no_tools
