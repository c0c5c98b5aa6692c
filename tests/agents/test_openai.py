"""The HTTP agent against a local server that fails as it is told to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agents.openai import ApiError, OpenAIAgent, cut_middle
from tests.agents.conftest import say, turn

KEY = "sk-very-secret"


def completion(text: str | None = "Action: one", **usage: Any) -> bytes:
    return json.dumps(
        {
            "choices": [{"message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, **usage},
        }
    ).encode()


class Stub(ThreadingHTTPServer):
    """Answers by a script of (status, body, headers, seconds to wait); then with completions."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[int, bytes, dict[str, str], float]] = []
        self.seen: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.delay = 0.0
        self.limit: int | None = None
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def plan(self, status: int, body: bytes | str = b"", wait: float = 0, **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.script.append((status, data, named, wait))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that gave up waiting are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append(body)
            server.times.append(time.monotonic())
            server.keys.append(self.headers.get("Authorization"))
            server.now += 1
            server.most = max(server.most, server.now)
            plan = server.script.pop(0) if server.script else None
        status, data, headers, wait = plan or (200, self.reply(body), {}, server.delay)
        time.sleep(wait)
        with server.lock:
            server.now -= 1
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def reply(self, body: dict[str, Any]) -> bytes:
        return completion("Action: " + body["messages"][-1]["content"])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def agent_for(stub: Stub, **options: Any) -> OpenAIAgent:
    return OpenAIAgent(
        "some-model",
        base_url=stub.url,
        **{"backoff": 0.02, "retries": 3, "timeout": 5.0, **options},
    )


def ask(agent: OpenAIAgent, *texts: str) -> list[str]:
    return agent.act([turn(i, say(text, system="Be brief.")) for i, text in enumerate(texts)])


def test_a_request_is_what_it_should_be(stub: Stub):
    agent = agent_for(stub, max_new_tokens=50)
    assert ask(agent, "hello") == ["Action: hello"]
    assert stub.seen == [
        {
            "model": "some-model",
            "temperature": 0.0,
            "max_tokens": 50,
            "stop": ["\nObservation:"],
            "messages": say("hello", system="Be brief."),
        }
    ]
    assert stub.keys == [f"Bearer {KEY}"]
    counts = agent.statistics()
    assert (counts["requests"], counts["retries"]) == (1, 0)
    assert (counts["tokens_read"], counts["tokens_generated"]) == (7, 3)
    assert KEY not in str(agent.fingerprint()) + str(agent.__dict__["_parameters"])


def test_sampling_sends_a_seed_of_episode_and_turn(stub: Stub):
    agent = agent_for(stub, temperature=0.7, top_p=0.9)
    agent.act([turn("a", say("x"), seed=5), turn("b", say("x", "y", "z"), seed=5)])
    agent.act([turn("c", say("x"), seed=5)])
    one, two = stub.seen[:2]
    if len(one["messages"]) > 1:
        one, two = two, one
    assert one["seed"] != two["seed"]
    assert one["seed"] == stub.seen[2]["seed"]
    assert (one["temperature"], one["top_p"]) == (0.7, 0.9)


def test_the_environment_gives_url_and_key(stub: Stub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_BASE_URL", stub.url + "/")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(OpenAIAgent("m"), "hi") == ["Action: hi"]
    assert stub.keys == [None]


def test_retry_after_is_honoured(stub: Stub):
    stub.plan(429, "slow down", Retry_After="0.6")
    agent = agent_for(stub, backoff=0.0)
    assert ask(agent, "hi") == ["Action: hi"]
    assert stub.times[1] - stub.times[0] >= 0.6
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
def test_unreadable_answers_are_asked_for_again_then_named(stub: Stub, body: str):
    stub.plan(200, body)
    agent = agent_for(stub, retries=1)
    assert ask(agent, "hi") == ["Action: hi"]
    stub.plan(200, body)
    stub.plan(200, body)
    with pytest.raises(ApiError, match=r"answered 200 with .*after 2 attempts"):
        ask(agent, "hi")


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_back_off_grows_and_ends(stub: Stub, status: int):
    for _ in range(3):
        stub.plan(status, "no")
    agent = agent_for(stub, retries=2, backoff=0.2)
    with pytest.raises(ApiError, match=rf"status {status}.*after 3 attempts"):
        ask(agent, "hi")
    first, second = stub.times[1] - stub.times[0], stub.times[2] - stub.times[1]
    assert first >= 0.1
    assert second >= 0.2


def test_time_out_then_success(stub: Stub):
    stub.plan(200, completion("late"), wait=1.0)
    agent = agent_for(stub, timeout=0.3)
    assert ask(agent, "hi") == ["Action: hi"]
    assert agent.statistics()["retries"] == 1
    stub.delay = 1.0
    with pytest.raises(ApiError, match=r"no answer from .* within 0.3 s"):
        ask(agent_for(stub, timeout=0.3, retries=0), "hi")


def test_refused_connection_names_the_url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ApiError, match=f"no connection to {url} .*refused.*OPENAI_BASE_URL"):
        ask(OpenAIAgent("m", base_url=url, retries=1, backoff=0.01), "hi")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "set OPENAI_API_KEY"),
        (403, "set OPENAI_API_KEY"),
        (404, "no model 'some-model'"),
        (400, "status 400"),
    ],
)
def test_errors_that_no_retry_helps(stub: Stub, status: int, text: str):
    stub.plan(status, f"your key {KEY} is odd")
    with pytest.raises(ApiError, match=text) as error:
        ask(agent_for(stub), "hi")
    assert len(stub.seen) == 1
    assert KEY not in str(error.value)


def test_concurrency_is_bounded_used_and_in_order(stub: Stub):
    stub.delay = 0.15
    agent = agent_for(stub, concurrency=4)
    texts = [f"n{i}" for i in range(12)]
    began = time.monotonic()
    assert ask(agent, *texts) == [f"Action: {text}" for text in texts]
    assert stub.most == 4
    assert time.monotonic() - began < 12 * 0.15
    agent.close()
    agent.close()


def test_one_failure_ends_the_batch_at_once(stub: Stub):
    stub.plan(401, "no")
    stub.plan(429, "wait", Retry_After="60")
    began = time.monotonic()
    with pytest.raises(ApiError, match="set OPENAI_API_KEY"):
        ask(agent_for(stub, concurrency=2), "a", "b", "c")
    assert time.monotonic() - began < 10


LONG = json.dumps(
    {
        "error": {
            "code": "context_length_exceeded",
            "message": "This model's maximum context length is 99 tokens.",
        }
    }
)


def test_too_long_a_prompt_loses_its_middle(stub: Stub):
    texts = ["the task", *(f"{'reply' if i % 2 else 'seen'} {i} " * 20 for i in range(1, 21))]
    messages = say(*texts, system="Be brief.")
    stub.plan(400, LONG)
    agent = agent_for(stub)
    agent.act([turn("a", messages)])
    sent = stub.seen[1]["messages"]
    assert len(sent) < len(messages)
    assert sent[0] == messages[0]
    assert sent[1]["content"].startswith("the task\n\n[")
    assert sent[-1] == messages[-1]
    assert [m["role"] for m in sent[1:]] == ["user", "assistant"] * (len(sent) // 2 - 1) + ["user"]
    assert agent.statistics()["prompts_cut"] == 1
    agent.act([turn("a", messages)])  # the limit is known by now
    assert len(stub.seen) == 3
    for _ in range(4):
        stub.plan(400, LONG)
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


def test_parameters_that_a_model_refuses_are_left_out(stub: Stub):
    stub.plan(
        400,
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
    )
    stub.plan(400, "Unsupported value: 'temperature' does not support 0.0 with this model.")
    agent = agent_for(stub, max_new_tokens=33)
    assert ask(agent, "hi") == ["Action: hi"]
    last = stub.seen[-1]
    assert last["max_completion_tokens"] == 33
    assert not {"max_tokens", "temperature"} & set(last)
    ask(agent, "hi")
    assert len(stub.seen) == 4


def test_no_text_is_an_empty_reply(stub: Stub):
    stub.plan(200, completion(None))
    assert ask(agent_for(stub), "hi") == [""]


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
