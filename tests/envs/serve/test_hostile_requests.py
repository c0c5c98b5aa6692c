"""Hostile requests to a server of each environment: refused in short, without a secret in the log,
and quickly."""

from __future__ import annotations

import inspect
import json
import logging
import time

import pytest

from stepagent import envs
from tests.envs.serve.servers import Running, wait_until

IDS = [
    f"stepagent/{name}-v0"
    for name in (
        "ALFWorld", "WebShop", "Mind2Web", "ScienceWorld", "HotpotQA", "2WikiMultihopQA", "MuSiQue"
    )
]  # fmt: skip
VALUES = [
    float("nan"), float("inf"), True, 0, -1, 1.5, "5", 10**4000, [], {}, [[[[]]]], "x" * 300_000,
    "\ud800", "\0", "../../etc/passwd", "/dev/zero", "http://127.0.0.1:9/", "os:system",
]  # fmt: skip
REFUSED = (400, 403, 422)
SECONDS = 20
"""Of one request, on a machine with much else to do."""


@pytest.fixture(scope="module")
def server():
    with Running(*IDS) as running:
        yield running


@pytest.fixture
def ask(server):
    """Asks, and checks that the answer is a short one that came soon."""

    def ask(method, path, body=None):
        start = time.monotonic()
        status, answer = server.ask(method, path, body)
        assert time.monotonic() - start < SECONDS, body
        assert status in (200, 404, 409, *REFUSED), (body, answer)
        if status != 200:
            assert len(json.dumps(answer)) < 5000
        return status, answer

    return ask


@pytest.fixture(params=IDS)
def opened(request, server):
    """(environment id, path of an open session)."""
    status, session = server.ask("POST", "/v1/sessions", {"env": request.param})
    assert status == 200, session
    yield request.param, f"/v1/sessions/{session['session']}"
    server.ask("DELETE", f"/v1/sessions/{session['session']}")


def _arguments(env_id):
    with envs.make(env_id) as env:
        inits = [cls.__init__ for cls in type(env.unwrapped).__mro__ if "__init__" in vars(cls)]
    names = {name for init in inits for name in inspect.signature(init).parameters}
    assert {"max_steps", "split"} <= names
    return sorted(names - {"self", "args", "kwargs"})


def test_hostile_arguments(ask, opened):
    env_id, _ = opened
    for name in (*_arguments(env_id), "no such argument"):
        for value in VALUES:
            body = {"env": env_id, "args": {name: value}}
            status, answer = ask("POST", "/v1/sessions", body)
            if status == 200:
                ask("DELETE", f"/v1/sessions/{answer['session']}")
            assert status in REFUSED or (name != "max_steps" and " " not in name), body


def test_hostile_resets_and_steps(ask, opened):
    _, session = opened
    for value in VALUES:
        status, _ = ask("POST", f"{session}/reset", {"seed": value})
        assert status in REFUSED or value == 0, value
        for body in ({"task_id": value}, {"options": value}, {"options": {"task_id": value}}):
            ask("POST", f"{session}/reset", body)
    assert ask("POST", f"{session}/reset", {"seed": 0})[0] == 200
    for value in VALUES:
        status, _ = ask("POST", f"{session}/step", {"action": value})
        assert status in REFUSED or (status == 200 and isinstance(value, str)), str(value)[:50]


FIXED = {
    "ALFWorld": [{"data": "{}"}, {"tasks": ["secret31337"]}],
    "WebShop": [{"data": "{}"}],
    "Mind2Web": [{"data": "{}"}, {"ranks": "{}"}, {"password": "secret31337"}],
    "ScienceWorld": [{"tasks": ["secret31337"]}],
    "HotpotQA": [{"data": "{}"}, {"corpus": "{}"}],
    "2WikiMultihopQA": [{"data": "{}"}, {"corpus": "{}"}],
    "MuSiQue": [{"data": "{}"}, {"corpus": "{}"}],
}
"""Environment → arguments that a server fixes, most of which do not work; `{}` is a path."""


@pytest.mark.parametrize(
    ("name", "fixed"), [(name, args) for name, choices in FIXED.items() for args in choices]
)
def test_fixed_arguments_are_in_no_answer_and_no_log(name, fixed, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="stepagent")
    env_id, path = f"stepagent/{name}-v0", str(tmp_path / "secret31337")
    fixed = {name: path if value == "{}" else value for name, value in fixed.items()}
    with Running(env_id, env_args={env_id: fixed}) as server:
        said = [server.ask("POST", "/v1/sessions", {"env": env_id})]
        for argument in _arguments(env_id):
            body = {"env": env_id, "args": {argument: "nowhere"}}
            said.append(server.ask("POST", "/v1/sessions", body))
        if said[0][0] == 200:
            session = f"/v1/sessions/{said[0][1]['session']}"
            said.append(server.ask("POST", f"{session}/reset", {"seed": 0}))
            said.append(server.ask("POST", f"{session}/reset", {"task_id": "nowhere"}))
            said.append(server.ask("POST", f"{session}/step", {"action": "search[nowhere]"}))
    usual = vars(logging.makeLogRecord({}))  # its times and threads are numbers, too
    for record in caplog.records:
        more = {key: value for key, value in vars(record).items() if key not in usual}
        said.append(f"{record.getMessage()} {record.exc_info} {more}")
    assert "31337" not in str(said)


def test_a_key_of_another_environment(ask, opened):
    env_id, _ = opened
    other = IDS[IDS.index(env_id) - 1]
    first = ask("POST", "/v1/sessions", {"env": env_id, "key": env_id})
    for body in ({"env": other}, {"env": env_id, "args": {"max_steps": 3}}):
        status, answer = ask("POST", "/v1/sessions", {**body, "key": env_id})
        assert (status, answer["error"]["code"]) == (409, "key")
    ask("DELETE", f"/v1/sessions/{first[1]['session']}")


@pytest.mark.parametrize("path", ["/v1/sessions//{}/step", "//v1/sessions/{}", "/{}"])
def test_no_secret_and_no_long_line_in_the_log(ask, opened, path, caplog):
    caplog.set_level(logging.DEBUG, logger="stepagent")
    env_id, session = opened
    secret = session.rpartition("/")[2]
    ask("GET", path.format(secret))
    ask("POST", "/v1/sessions", {"env": env_id, "args": {"split": "x" * 900_000}})
    ask("POST", f"{session}/reset", {"task_id": "y" * 900_000})

    def logged():
        records = [r for r in list(caplog.records) if r.name.startswith("stepagent")]
        return [f"{r.getMessage()} {getattr(r, 'fields', '')}" for r in records]

    wait_until(lambda: any(secret[:8] in line for line in logged()))
    assert not any(secret in line for line in logged())
