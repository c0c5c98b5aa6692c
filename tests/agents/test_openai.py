"""The HTTP agent against a local server that fails as instructed."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from stepagent.agents.costs import RateLimit, cost, price_of
from stepagent.agents.openai import ApiError, OpenAIAgent, cut_middle
from stepagent.agents.reply_cache import Completion, ReplyCache
from stepagent.errors import SetupError
from stepagent.eval import run as eval_run
from tests.agents.chat_server import KEY, ChatServer, completion
from tests.agents.conversations import say, turn
from tests.servers import running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = ChatServer()
    with running(server, monkeypatch):
        yield server


def agent_for(server: ChatServer, **options: Any) -> OpenAIAgent:
    return OpenAIAgent(
        "some-model",
        base_url=server.url,
        **{"backoff": 0.02, "retries": 3, "timeout": 5.0, **options},
    )


def ask(agent: OpenAIAgent, *texts: str) -> list[str]:
    return agent.act([turn(i, say(text, system="Be brief.")) for i, text in enumerate(texts)])


def test_a_request_is_what_it_should_be(server: ChatServer):
    agent = agent_for(server, max_new_tokens=50)
    assert ask(agent, "hello") == ["Action: hello"]
    assert server.seen == [
        {
            "model": "some-model",
            "temperature": 0.0,
            "max_tokens": 50,
            "stop": ["\nObservation:"],
            "messages": say("hello", system="Be brief."),
        }
    ]
    assert server.keys == [f"Bearer {KEY}"]
    counts = agent.statistics()
    assert (counts["requests"], counts["retries"]) == (1, 0)
    assert (counts["tokens_read"], counts["tokens_generated"]) == (7, 3)
    assert KEY not in str(agent.fingerprint()) + str(agent.__dict__["_parameters"])


def test_sampling_sends_a_seed_of_episode_and_turn(server: ChatServer):
    agent = agent_for(server, temperature=0.7, top_p=0.9)
    agent.act([turn("a", say("x"), seed=5), turn("b", say("x", "y", "z"), seed=5)])
    agent.act([turn("c", say("x"), seed=5)])
    one, two = server.seen[:2]
    if len(one["messages"]) > 1:
        one, two = two, one
    assert one["seed"] != two["seed"]
    assert one["seed"] == server.seen[2]["seed"]
    assert (one["temperature"], one["top_p"]) == (0.7, 0.9)


def test_the_environment_gives_url_and_key(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(OpenAIAgent("m"), "hi") == ["Action: hi"]
    assert server.keys == [None]


def test_retry_after_is_honoured(server: ChatServer):
    server.plan(429, "slow down", Retry_After="0.6")
    agent = agent_for(server, backoff=0.0)
    assert ask(agent, "hi") == ["Action: hi"]
    assert server.times[1] - server.times[0] >= 0.6
    assert agent.statistics()["retries"] == 1


@pytest.mark.parametrize(
    "body",
    [
        "{not json",
        "[]",
        "null",
        '{"choices": []}',
        '{"choices": [{}]}',
        '{"choices": null}',
    ],
)
def test_unreadable_answers_are_asked_for_again_then_named(server: ChatServer, body: str):
    server.plan(200, body)
    agent = agent_for(server, retries=1)
    assert ask(agent, "hi") == ["Action: hi"]
    server.plan(200, body)
    server.plan(200, body)
    with pytest.raises(ApiError, match=r"answered 200 with .*after 2 attempts"):
        ask(agent, "hi")


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_back_off_grows_and_ends(server: ChatServer, status: int):
    for _ in range(3):
        server.plan(status, "no")
    agent = agent_for(server, retries=2, backoff=0.2)
    with pytest.raises(ApiError, match=rf"status {status}.*after 3 attempts"):
        ask(agent, "hi")
    first, second = server.times[1] - server.times[0], server.times[2] - server.times[1]
    assert first >= 0.1
    assert second >= 0.2


def test_time_out_then_success(server: ChatServer):
    server.plan(200, completion("late"), wait=1.0)
    agent = agent_for(server, timeout=0.3)
    assert ask(agent, "hi") == ["Action: hi"]
    assert agent.statistics()["retries"] == 1
    server.delay = 1.0
    with pytest.raises(ApiError, match=r"no answer from .* within 0.3 s"):
        ask(agent_for(server, timeout=0.3, retries=0), "hi")


def test_refused_connection_names_the_url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ApiError, match=f"no connection to {url} .*refused.*OPENAI_BASE_URL"):
        ask(OpenAIAgent("m", base_url=url, retries=1, backoff=0.01), "hi")


def test_openai_itself_is_not_asked_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(requests.Session, "post", lambda *_, **__: pytest.fail("it was asked"))
    began = time.monotonic()
    with pytest.raises(SetupError, match="set OPENAI_API_KEY"):
        ask(OpenAIAgent("gpt-4o"), "hi")
    assert time.monotonic() - began < 1
    out = ["--out", str(tmp_path), "--no-cache"]
    assert eval_run.main(["--env", "stepagent/HotpotQA-v0", "--agent", "openai:gpt-4o", *out]) == 2


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "set OPENAI_API_KEY"),
        (403, "set OPENAI_API_KEY"),
        (404, "no model 'some-model'"),
        (400, "status 400"),
    ],
)
def test_errors_that_no_retry_helps(server: ChatServer, status: int, text: str):
    server.plan(status, f"your key {KEY} is odd")
    with pytest.raises(ApiError, match=text) as error:
        ask(agent_for(server), "hi")
    assert len(server.seen) == 1
    assert KEY not in str(error.value)


def test_concurrency_is_bounded_used_and_in_order(server: ChatServer):
    server.delay = 0.15
    agent = agent_for(server, concurrency=4)
    texts = [f"n{i}" for i in range(12)]
    began = time.monotonic()
    assert ask(agent, *texts) == [f"Action: {text}" for text in texts]
    assert server.most == 4
    assert time.monotonic() - began < 12 * 0.15
    agent.close()
    agent.close()


def test_one_failure_ends_the_batch_at_once(server: ChatServer):
    server.plan(401, "no")
    server.plan(429, "wait", Retry_After="60")
    began = time.monotonic()
    with pytest.raises(ApiError, match="set OPENAI_API_KEY"):
        ask(agent_for(server, concurrency=2), "a", "b", "c")
    assert time.monotonic() - began < 10


LONG = json.dumps(
    {
        "error": {
            "code": "context_length_exceeded",
            "message": "This model's maximum context length is 99 tokens.",
        }
    }
)


def test_too_long_a_prompt_loses_its_middle(server: ChatServer):
    texts = ["the task", *(f"{'reply' if i % 2 else 'seen'} {i} " * 20 for i in range(1, 21))]
    messages = say(*texts, system="Be brief.")
    server.plan(400, LONG)
    agent = agent_for(server)
    agent.act([turn("a", messages)])
    sent = server.seen[1]["messages"]
    assert len(sent) < len(messages)
    assert sent[0] == messages[0]
    assert sent[1]["content"].startswith("the task\n\n[")
    assert sent[-1] == messages[-1]
    assert [m["role"] for m in sent[1:]] == ["user", "assistant"] * (len(sent) // 2 - 1) + ["user"]
    assert agent.statistics()["prompts_cut"] == 1
    agent.act([turn("a", messages)])  # the limit is known by now
    assert len(server.seen) == 3
    for _ in range(4):
        server.plan(400, LONG)
    with pytest.raises(ApiError, match="too long"):
        agent.act([turn("a", messages)])


def test_cut_middle_of_one_long_text():
    messages = say("begin " + "x" * 5000 + " end", system="s" * 50)
    cut = cut_middle(messages, 1000)
    assert cut[0] == messages[0]
    assert cut[1]["content"].startswith("begin x")
    assert cut[1]["content"].endswith("x end")
    assert sum(len(m["content"]) for m in cut) <= 1010
    assert cut_middle(messages, 10**6) == messages


def test_parameters_that_a_model_refuses_are_left_out(server: ChatServer):
    server.plan(
        400,
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
    )
    server.plan(400, "Unsupported value: 'temperature' does not support 0.0 with this model.")
    agent = agent_for(server, max_new_tokens=33)
    assert ask(agent, "hi") == ["Action: hi"]
    last = server.seen[-1]
    assert last["max_completion_tokens"] == 33
    assert not {"max_tokens", "temperature"} & set(last)
    ask(agent, "hi")
    assert len(server.seen) == 4


def test_no_text_is_an_empty_reply(server: ChatServer):
    server.plan(200, completion(None))
    assert ask(agent_for(server), "hi") == [""]


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"retries": -1},
        {"timeout": 0},
        {"base_url": "localhost:80"},
    ],
)
def test_bad_options(options: dict[str, Any]):
    with pytest.raises(ValueError):
        OpenAIAgent("m", **options)


# Streaming --------------------------------------------------------------------------------------


def drain(agent: OpenAIAgent, count: int) -> dict[Any, Any]:
    replies: dict[Any, Any] = {}
    deadline = time.monotonic() + 60
    while len(replies) < count and time.monotonic() < deadline:
        replies |= dict(agent.poll())
    return replies


def test_a_slow_reply_delays_no_other(server: ChatServer):
    server.plan(200, completion("slow"), wait=3.0)
    agent = agent_for(server, concurrency=3, timeout=60.0)
    assert agent.streaming
    agent.submit([turn(0, say("zero"))])
    while not server.seen:
        time.sleep(0.01)
    agent.submit([turn(i, say(f"n{i}")) for i in range(1, 6)])
    others = drain(agent, 5)
    assert others == {i: f"Action: n{i}" for i in range(1, 6)}
    assert drain(agent, 1) == {0: "slow"}
    agent.close()


def test_a_turn_that_fails_is_the_only_one(server: ChatServer):
    server.plan(400, "bad request")
    agent = agent_for(server, concurrency=1)
    agent.submit([turn(i, say(f"n{i}")) for i in range(3)])
    replies = drain(agent, 3)
    assert isinstance(replies[0], ApiError)
    assert (replies[1], replies[2]) == ("Action: n1", "Action: n2")
    agent.close()


# The cache of replies ---------------------------------------------------------------------------


def test_a_repeated_run_asks_for_nothing(server: ChatServer, tmp_path: Path):
    path = tmp_path / "deep" / "replies.sqlite"
    first = agent_for(server, cache=path)
    assert ask(first, "a", "b") == ["Action: a", "Action: b"]
    first.close()
    again = agent_for(server, cache=path)
    assert ask(again, "b", "a") == ["Action: b", "Action: a"]
    assert len(server.seen) == 2
    counts = again.statistics()
    assert (counts["requests"], counts["replies_cached"], counts["tokens_cached"]) == (0, 2, 20)
    again.close()
    for file in path.parent.iterdir():
        assert KEY.encode() not in file.read_bytes()


def test_other_requests_are_other_replies(server: ChatServer, tmp_path: Path):
    path = tmp_path / "replies.sqlite"
    for options in ({}, {"max_new_tokens": 9}, {"temperature": 0.5}, {"top_p": 0.5}):
        ask(agent_for(server, cache=path, **options), "a")
    OpenAIAgent("other", base_url=server.url, cache=path).act(
        [turn(0, say("a", system="Be brief."))]
    )
    hot = agent_for(server, cache=path, temperature=0.5)
    hot.act([turn(0, say("a", system="Be brief."), seed=4)])  # another seed
    assert len(server.seen) == 6


def test_each_server_has_replies_of_its_own(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "replies.sqlite"
    other = ChatServer()
    with running(other, monkeypatch):
        server.plan(200, completion("Action: here"))
        other.plan(200, completion("Action: there"))
        for _ in range(2):
            assert ask(agent_for(server, cache=path), "a") == ["Action: here"]
            assert ask(agent_for(other, cache=path), "a") == ["Action: there"]
    assert (len(server.seen), len(other.seen)) == (1, 1)
    with_user = OpenAIAgent(
        "some-model", base_url=server.url.replace("//", "//me:pass@"), cache=path
    )
    assert ask(with_user, "a") == ["Action: here"]  # who asks is no part of it
    assert b"127.0.0.1" not in path.read_bytes()


def test_refusals_and_cut_prompts_do_not_hide_the_cache(server: ChatServer, tmp_path: Path):
    path = tmp_path / "replies.sqlite"
    server.plan(400, "Unsupported parameter: 'max_tokens' is not supported with this model.")
    server.plan(400, LONG)
    messages = say(*(f"text {i} " * 30 for i in range(7)), system="Be brief.")
    replies = agent_for(server, cache=path).act([turn(0, messages)])
    assert len(server.seen) == 3
    assert agent_for(server, cache=path).act([turn(0, messages)]) == replies
    assert len(server.seen) == 3


def test_failures_are_not_cached(server: ChatServer, tmp_path: Path):
    path = tmp_path / "replies.sqlite"
    server.plan(400, "no")
    with pytest.raises(ApiError):
        ask(agent_for(server, cache=path), "a")
    assert ask(agent_for(server, cache=path), "a") == ["Action: a"]


def write_replies(path: Path, number: int) -> None:
    cache = ReplyCache(path)
    for i in range(40):
        cache.put({"n": i}, Completion(f"reply {i}", i))
        cache.put({"own": [number, i]}, Completion("x"))
    os._exit(0)


def test_two_processes_use_one_cache(tmp_path: Path):
    path = tmp_path / "replies.sqlite"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_replies, args=(path, n)) for n in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    cache = ReplyCache(path)
    assert [cache.get({"n": i}) for i in range(40)] == [
        Completion(f"reply {i}", i) for i in range(40)
    ]
    assert all(cache.get({"own": [n, i]}) for n in range(2) for i in range(40))
    assert cache.get({"n": 40}) is None


def test_a_file_that_is_not_a_cache_is_named(tmp_path: Path):
    path = tmp_path / "replies.sqlite"
    path.write_text("something else, and long enough to be taken for a database" * 10)
    with pytest.raises(ValueError, match=r"replies.sqlite cannot be used .*delete it"):
        ReplyCache(path)


def test_a_cache_that_fails_later_costs_nothing_else(server: ChatServer, tmp_path: Path):
    agent = agent_for(server, cache=tmp_path / "replies.sqlite")
    assert agent._cache is not None
    agent._cache._file.execute("DROP TABLE replies")
    assert ask(agent, "a", "b") == ["Action: a", "Action: b"]


# Prices and limits ------------------------------------------------------------------------------


def test_cost_is_counted_where_the_price_is_known(server: ChatServer, tmp_path: Path):
    table = {"some-model": {"input": 10, "cached": 1, "output": 100}}
    usage = {"prompt_tokens": 30, "completion_tokens": 5}
    server.plan(200, completion("Action: a", **usage, prompt_tokens_details={"cached_tokens": 20}))
    agent = agent_for(server, prices=table)
    ask(agent, "hi")
    counts = agent.statistics()
    assert counts["cost"] == pytest.approx((10 * 10 + 20 * 1 + 5 * 100) / 1e6)
    file = tmp_path / "prices.yaml"
    file.write_text("some-model: {input: 2, output: 4}\n")
    other = agent_for(server, prices=file)
    ask(other, "hi")
    assert other.statistics()["cost"] == pytest.approx((7 * 2 + 3 * 4) / 1e6)
    assert "cost" not in agent_for(server).statistics()


def test_the_papers_two_models_have_prices_in_litellms_list(tmp_path: Path):
    def entry(provider: str, **costs: float) -> dict[str, Any]:
        return {"litellm_provider": provider, "max_tokens": 4096, "mode": "chat", **costs}

    file = tmp_path / "model_prices_and_context_window.json"
    table = {
        "sample_spec": entry("one of …", input_cost_per_token=0.0, output_cost_per_token=0.0),
        "dall-e-2": entry("openai", input_cost_per_pixel=1.9e-08),
        "gpt-3.5-turbo-1106": entry(
            "openai", input_cost_per_token=1e-06, output_cost_per_token=2e-06
        ),
        "azure/gpt-4-0125-preview": entry(
            "azure",
            input_cost_per_token=1e-05,
            output_cost_per_token=3e-05,
            cache_read_input_token_cost=5e-06,
        ),
    }
    file.write_text(json.dumps(table))
    million = Completion("", 10**6, 0, 10**6)
    gpt3 = price_of("gpt-3.5-turbo-1106", file)
    gpt4 = price_of("openai/gpt-4-0125-preview", file)
    assert gpt3
    assert gpt4
    assert cost(million, gpt3) == pytest.approx(3.0)
    assert cost(million, gpt4) == pytest.approx(40.0)
    assert gpt4["cached"] == pytest.approx(5.0)
    assert price_of("dall-e-2", file) is None
    assert price_of("gpt-3.5-turbo-1106", None) is None


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"input": 1},
        {"input": 1, "output": "x"},
        {"output": -1},
        {"input": 1, "output": -1},
        {"input_cost_per_token": "free", "output_cost_per_token": 1},
    ],
)
def test_bad_prices_are_named(entry: Any):
    with pytest.raises(ValueError, match="the price of 'm' must be"):
        price_of("m", {"m": entry})


@pytest.mark.parametrize(
    "usage",
    [None, [], "many", {"prompt_tokens": "x", "completion_tokens": -5, "prompt_tokens_details": 3}],
)
def test_nonsense_about_tokens_costs_no_reply(server: ChatServer, usage: Any):
    body = {"choices": [{"message": {"content": "Action: a"}}], "usage": usage}
    server.plan(200, json.dumps(body))
    agent = agent_for(server)
    assert ask(agent, "hi") == ["Action: a"]
    assert agent.statistics()["tokens_read"] == 0


def test_requests_and_tokens_per_minute():
    never = threading.Event()

    def times(limit: RateLimit, tokens: list[int]) -> list[float]:
        start = time.monotonic()
        return [limit.wait(n, never)[0] - start for n in tokens]

    moments = times(RateLimit(2, None, window=0.4), [1] * 5)
    assert moments[2] - moments[0] >= 0.4
    assert moments[3] - moments[1] >= 0.4
    assert moments[4] - moments[2] >= 0.4
    moments = times(RateLimit(None, 100, window=0.4), [60, 40, 50, 500])
    assert moments[1] < 0.4
    assert moments[2] - moments[0] >= 0.4
    assert moments[3] - moments[2] >= 0.4  # alone it may exceed the limit
    limit = RateLimit(None, 100, window=5.0)
    limit.correct(limit.wait(90, never), 10)  # it took less than was thought
    assert times(limit, [80])[0] < 4
    with pytest.raises(ValueError, match="at least 1"):
        RateLimit(0, None)


def test_a_server_that_asks_to_wait_is_left_alone_by_all(server: ChatServer):
    server.plan(429, "slow down", Retry_After="0.6")
    agent = agent_for(server, concurrency=1, backoff=0.0)
    ask(agent, "a", "b")
    limited = agent_for(server, requests_per_minute=1000, tokens_per_minute=10**6)
    assert ask(limited, "c") == ["Action: c"]
    pause = RateLimit(None, None)
    pause.pause(0.3)
    start = time.monotonic()
    assert pause.wait(1, threading.Event())[0] - start >= 0.25
