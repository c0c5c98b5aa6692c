"""What the server answers to plain requests, good and bad."""

import json
import logging
import re
import socket
import tracemalloc

import pytest

from stepagent.envs import remote
from stepagent.envs.serve import __main__ as serve
from stepagent.envs.serve.app import MAX_BATCH
from stepagent.envs.serve.guard import JsonLines
from tests.envs.serve.faulty import ID as FAULTY
from tests.envs.serve.faulty import FaultyEnv
from tests.envs.serve.servers import Running, wait_until

GUESS = "tests.envs.guess:tests/Guess-v0"


@pytest.fixture(scope="module")
def server():
    with Running(GUESS, FAULTY, max_body=1 << 20) as running:
        yield running


@pytest.fixture
def session(server):
    status, opened = server.ask("POST", "/v1/sessions", {"env": "tests/Faulty-v0"})
    assert status == 200
    yield f"/v1/sessions/{opened['session']}"
    server.ask("DELETE", f"/v1/sessions/{opened['session']}")


def code(answer):
    status, body = answer
    return status, body["error"]["code"]


def test_a_repeated_number_gets_the_stored_answer(server, session):
    server.ask("POST", f"{session}/reset", {"seed": 1, "number": 1})
    before = FaultyEnv.stepped
    first = server.ask("POST", f"{session}/step", {"action": "a", "number": 2})
    assert first == server.ask("POST", f"{session}/step", {"action": "a", "number": 2})
    assert FaultyEnv.stepped == before + 1
    assert first[1]["observation"] == "step 1"
    for number in (1, 4, 0, -1):
        answer = server.ask("POST", f"{session}/step", {"action": "b", "number": number})
        assert code(answer) == (409, "order")
    assert code(server.ask("POST", f"{session}/step", {"action": "b", "number": 2})) == (
        409,
        "order",
    )
    assert server.ask("POST", f"{session}/step", {"action": "b"})[1]["number"] == 3  # none: next
    assert FaultyEnv.stepped == before + 2


def test_a_repeated_key_opens_no_second_session(server):
    count = server.sessions.count
    request = {"env": GUESS, "key": "k1"}
    opened = [server.ask("POST", "/v1/sessions", request)[1]["session"] for _ in range(2)]
    assert opened[0] == opened[1]
    assert server.sessions.count == count + 1
    path = f"/v1/sessions/{opened[0]}"
    assert server.ask("DELETE", path) == server.ask("DELETE", path) == (200, {"closed": True})
    assert code(server.ask("POST", f"{path}/reset", {})) == (410, "expired")
    assert server.sessions.count == count


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("{", 400, "no JSON"),
        ('{"action": "\\ud800"}', 400, "no JSON"),
        ("[]", 422, "body"),
        ("{}", 422, "action: Field required"),
        ('{"action": 7}', 422, "action: Input should be a valid string"),
        ('{"action": "a", "number": "2"}', 422, "number: Input should be a valid integer"),
        ('{"action": "a", "acton": "b"}', 422, "acton: Extra inputs"),
        (b"\xff\xfe", 400, "no JSON"),
    ],
)
def test_broken_bodies_are_named(server, session, body, status, said):
    got, answer = server.ask("POST", f"{session}/step", body)
    assert got == status
    assert said in answer["error"]["message"]
    assert server.ask("POST", f"{session}/reset", {})[0] == 200  # nothing was harmed


def test_unknown_things_are_named(server, session):
    answer = server.ask("POST", "/v1/sessions", {"env": "stepagent/Chess-v0"})
    assert code(answer) == (404, "unknown_env")
    assert "tests/Guess-v0" in answer[1]["error"]["message"]
    assert code(server.ask("POST", "/v1/sessions/nope/reset", {})) == (404, "unknown_session")
    assert code(server.ask("GET", f"{session}/secrets")) == (404, "path")
    assert code(server.ask("GET", "/elsewhere")) == (404, "path")
    assert code(server.ask("PUT", "/v1/sessions", {})) == (405, "path")
    wrong = {"env": GUESS, "args": {"split": "validation"}}
    status, answer = server.ask("POST", "/v1/sessions", wrong)
    assert (status, answer["error"]["type"]) == (422, "ValueError")
    assert "train, dev, test" in answer["error"]["message"]


def test_a_batch_answers_each_call_by_itself(server, session):
    name = session.rsplit("/", 1)[1]
    calls = [
        {"session": name, "call": "reset", "seed": 1, "number": 1},
        {"session": "nope", "call": "step", "action": "a"},
        {"session": name, "call": "fly"},
        {"session": name, "call": "step", "action": 7},
        7,
    ]
    status, answer = server.ask("POST", "/v1/batch", {"calls": calls[:4]})
    answers = answer["answers"]
    assert (status, answers[0]["number"]) == (200, 1)
    codes = [a["error"]["code"] for a in answers[1:]]
    assert codes == ["unknown_session", "request", "request"]
    assert code(server.ask("POST", "/v1/batch", {"calls": calls}))[0] == 422
    assert code(server.ask("POST", "/v1/batch", {"calls": [{}] * (MAX_BATCH + 1)}))[0] == 422


def test_100_mb_are_refused_and_never_held(server, session):
    big = b'{"action": "' + b"x" * 100_000_000 + b'"}'
    tracemalloc.start()
    status, answer = server.ask("POST", f"{session}/step", big)
    assert (status, answer["error"]["code"]) == (413, "too_large")
    assert "1048576" in answer["error"]["message"]

    def chunks():  # a body that does not say how long it is
        yield b'{"action": "'
        for _ in range(100):
            yield b"x" * 1_000_000

    assert code(server.ask("POST", f"{session}/step", chunks())) == (413, "too_large")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30_000_000
    assert server.ask("POST", f"{session}/reset", {})[0] == 200


def test_nonsense_instead_of_http_harms_nobody(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as wire:
        wire.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b"400" in wire.recv(1000)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as wire:
        wire.sendall(b"POST /v1/sessions HTTP/1.1\r\nContent-Length: minus\r\n\r\n")
        assert b" 4" in wire.recv(1000)
    assert server.ask("GET", "/healthz")[0] == 200


def test_a_token_is_asked_for_everywhere_but_at_the_health_checks():
    with Running(GUESS, token="secret") as server:
        for path in ("/healthz", "/readyz", "/health"):
            assert server.ask("GET", path)[0] == 200
        for path in ("/metrics", "/v1/info", "/docs", "/openapi.json"):
            assert code(server.ask("GET", path)) == (401, "unauthorized")
            assert code(server.ask("GET", path, Authorization="Bearer wrong"))[0] == 401
            assert server.ask("GET", path, Authorization="Bearer secret")[0] == 200
        basic = {"Authorization": "Basic dXNlcjpzZWNyZXQ="}  # user:secret
        assert server.ask("GET", "/v1/info", **basic)[0] == 200
        assert server.ask("GET", "/v1/info", Authorization="Basic ?")[0] == 401
        with pytest.raises(remote.WrongToken, match=r"a token is needed.*STEPAGENT_TOKEN"):
            remote.RemoteEnv(GUESS, url=server.url)
        with pytest.raises(remote.WrongToken, match="the token is wrong"):
            remote.RemoteEnv(GUESS, url=server.url, token="other")
        env = remote.RemoteEnv(GUESS, url=server.url, token="secret")
        assert env.reset(seed=0)
        env.close()


def test_pages_of_other_sites_are_kept_out(server):
    body = {"env": GUESS}
    for headers in (
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Origin": f"http://example.org:{server.port}", "Host": f"example.org:{server.port}"},
    ):
        assert code(server.ask("POST", "/v1/sessions", body, **headers)) == (403, "origin")
    status, opened = server.ask("POST", "/v1/sessions", body, Origin=server.url)
    assert status == 200
    server.ask("DELETE", f"/v1/sessions/{opened['session']}", Origin=server.url)


def test_the_token_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv(remote.TOKEN_VARIABLE, "secret")
    with Running(GUESS, token="secret") as server:
        env = remote.RemoteEnv(GUESS, url=server.url)
        assert env.reset(seed=0)
        env.close()


def test_other_versions_are_refused_on_both_sides(server, monkeypatch):
    answer = server.ask("GET", "/v1/info", **{remote.client.PROTOCOL_HEADER: "99"})
    assert code(answer) == (400, "version")
    monkeypatch.setattr(remote.env, "own_version", lambda: "0.0.1")
    with pytest.raises(remote.WrongVersion, match=r"here it is 0\.0\.1"):
        remote.RemoteEnv(GUESS, url=server.url)
    monkeypatch.setattr(remote.env, "own_version", lambda: "source")
    remote.RemoteEnv(GUESS, url=server.url).close()


def test_clients_may_set_what_the_server_lets_them():
    fixed = {"tests/Guess-v0": {"max_steps": 3}}
    with Running(GUESS, env_args=fixed, client_args=["split"]) as server:
        env = remote.RemoteEnv(GUESS, url=server.url, split="dev")
        assert (env.split, env.max_steps) == ("dev", 3)
        env.close()
        for args, why in (
            ({"max_steps": 5}, "the server fixes it"),
            ({"data": "/etc"}, "it takes split"),
        ):
            status, answer = server.ask("POST", "/v1/sessions", {"env": GUESS, "args": args})
            assert (status, answer["error"]["code"]) == (403, "argument")
            assert why in answer["error"]["message"]


def test_documentation_has_an_example_for_every_body(server):
    status, schema = server.ask("GET", "/openapi.json")
    assert status == 200
    for path in ("/v1/sessions", "/v1/batch", "/v1/sessions/{session}/step"):
        content = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        name = content["schema"]["$ref"].rsplit("/", 1)[1]
        assert set(content["example"]) <= set(schema["components"]["schemas"][name]["properties"])
        answer = schema["paths"][path]["post"]["responses"]["200"]
        assert answer["content"]["application/json"]["example"]
    json.dumps(schema)


def test_the_documentation_page_fetches_nothing(server):
    status, page = server.ask("GET", "/docs")
    assert status == 200
    assert "/v1/sessions/{session}/step" in page
    assert "look around" in page
    assert not re.search(r"<script|<link|<img|src=|url\(|https?://(?!127)", page)


def test_fixed_arguments_are_told_to_nobody(caplog):
    caplog.set_level("DEBUG", logger="stepagent.serve")
    fixed = {"tests/Guess-v0": {"max_steps": 31337}}
    with Running(GUESS, env_args=fixed) as server:
        answers = [
            server.ask("POST", "/v1/sessions", {"env": GUESS, "args": {"max_steps": 5}}),
            server.ask("GET", "/v1/info"),
        ]
        assert server.ask("POST", "/v1/sessions", {"env": GUESS})[0] == 200
    logged = [getattr(record, "fields", {}) for record in caplog.records]
    assert any("session" in fields for fields in logged)
    assert "31337" not in str(answers) + str(logged)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, 0, -1, 1.5, "5", 10**4000])
def test_impossible_limits_and_seeds_are_refused(server, session, value):
    for answer in (
        server.ask("POST", "/v1/sessions", {"env": GUESS, "args": {"max_steps": value}}),
        server.ask("POST", f"{session}/reset", {"seed": value if value != 0 else -5}),
    ):
        assert answer[0] in (400, 422), answer


def test_a_key_belongs_to_one_environment_and_its_arguments(server):
    def open_session(env, **args):
        return server.ask("POST", "/v1/sessions", {"env": env, "args": args, "key": "k9"})

    first = open_session(GUESS)
    assert first[0] == 200
    assert open_session(GUESS)[1]["session"] == first[1]["session"]
    for other in (open_session(FAULTY), open_session(GUESS, max_steps=2)):
        assert code(other) == (409, "key")


@pytest.mark.parametrize("path", ["/v1/sessions//{}/step", "//v1/sessions/{}", "/x/{}", "/{}"])
def test_no_path_brings_a_session_into_the_log(server, session, path, caplog):
    secret = session.rpartition("/")[2]
    server.ask("GET", path.format(secret))

    def logged():
        return str([record.fields for record in caplog.records if hasattr(record, "fields")])

    wait_until(lambda: secret[:8] in logged())  # the line comes after the answer
    assert secret not in logged()


def test_log_lines_are_short(server, caplog):
    server.ask("POST", "/v1/sessions", {"env": GUESS, "args": {"split": "x" * 900_000}})
    record = logging.LogRecord("n", logging.INFO, "", 0, "opened", (), None)
    record.fields = {"args": {"data": ["y" * 3_000_000]}, "error": "z" * 3_000_000, "number": 3}
    line = JsonLines().format(record)
    assert len(line) < 5000
    assert json.loads(line)["number"] == 3


@pytest.mark.parametrize("token", [" a", "a b", "a\n", "é"])
def test_a_token_that_no_client_can_send_is_refused(token, monkeypatch, capsys):
    monkeypatch.setenv("STEPAGENT_TOKEN", token)
    assert serve.main(["--env", GUESS]) == 2
    assert "visible ASCII" in capsys.readouterr().err
    with pytest.raises(ValueError, match="visible ASCII"):
        remote.RemoteEnv(GUESS, url="http://127.0.0.1:9")


def test_counters_count(server, session):
    server.ask("POST", f"{session}/reset", {})
    server.ask("POST", f"{session}/step", {"action": "a", "number": 2})
    server.ask("POST", f"{session}/step", {"action": "a", "number": 2})
    text = server.ask("GET", "/metrics")[1]
    assert 'stepagent_sessions{env="tests/Faulty-v0"} 1.0' in text
    assert 'stepagent_call_seconds_count{call="step",env="tests/Faulty-v0"}' in text
    for name in (
        "process_resident_memory_bytes",
        "stepagent_threads",
        "stepagent_repeated_calls_total",
        'stepagent_requests_total{status="200"}',
        "stepagent_children_resident_memory_bytes",
    ):
        assert name in text, name
