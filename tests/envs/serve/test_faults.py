"""What breaks while environments are served, and what comes of it."""

import itertools
import json
import signal
import subprocess
import sys
import threading
import time

import gymnasium as gym
import psutil
import pytest
import urllib3

from stepagent import envs
from stepagent.envs.remote import (
    EnvironmentFailed,
    RemoteError,
    RemoteVectorEnv,
    Server,
    ServerFull,
    ServerGone,
    SessionLost,
    StepTimeout,
    WrongVersion,
)
from stepagent.envs.remote import vector as remote_vector
from stepagent.envs.serve import __main__ as command
from tests.envs.serve import faulty
from tests.envs.serve.faulty import ID as FAULTY
from tests.envs.serve.faulty import FaultyEnv
from tests.envs.serve.servers import ROOT, Command, Cutter, Running, wait_until
from tests.servers import Scripted, running

SCIENCEWORLD = "stepagent/ScienceWorld-v0"


@pytest.fixture
def server():
    with Running(FAULTY, step_seconds=1.5, start_seconds=20) as running:
        yield running
        faulty.release.set()
    faulty.release.clear()
    assert not FaultyEnv.open_now, "an environment was never closed"


def test_a_server_killed_in_mid_episode_and_started_again():
    with Command("--env", FAULTY) as first:
        env = gym.make(FAULTY, url=first.url, patience=0.3).unwrapped
        text, _ = env.reset(seed=4)
        env.step("a")
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(ServerGone, match="Is the server"):
        env.step("b")
    with pytest.raises(gym.error.ResetNeeded):  # the episode is over, and says so
        env.step("b")
    with pytest.raises(ServerGone):
        env.reset(seed=4)
    with Command("--env", FAULTY, port=first.port):
        assert env.reset(seed=4)[0] == text
        assert env.step("a")[0] == "step 1"
        env.close()


def test_a_server_started_again_behind_an_open_episode():
    with Command("--env", FAULTY) as first:
        env = gym.make(FAULTY, url=first.url, patience=10).unwrapped
        text, _ = env.reset(seed=4)
        first.stop(signal.SIGKILL)
    with Command("--env", FAULTY, port=first.port):
        with pytest.raises(SessionLost, match="restarted"):
            env.step("b")
        assert env.reset(seed=4)[0] == text


def test_a_connection_cut_during_a_step_applies_it_once(server):
    proxy = Cutter(server.port)
    env = gym.make(FAULTY, url=proxy.url).unwrapped
    env.reset(seed=0)
    before = FaultyEnv.stepped
    for count, action in enumerate(("sleep 0.2", "quick", "sleep 0.1"), start=1):
        proxy.cut(f'"{action}"')
        assert env.step(action)[0] == f"step {count}"
    assert (proxy.cuts, FaultyEnv.stepped) == (3, before + 3)
    proxy.cut('"reset"')
    env.reset(seed=1)
    assert env.step("a")[0] == "step 1"
    opened = server.sessions.count
    proxy.cut('"key"')  # during the opening of a session: no second one is opened
    another = envs.make(FAULTY, url=proxy.url)
    assert (proxy.cuts, server.sessions.count) == (5, opened + 1)
    vector = RemoteVectorEnv(FAULTY, 3, url=proxy.url)
    vector.reset(seed=0)
    proxy.cut('"calls"')
    assert tuple(vector.step(("a", "b", "c"))[0]) == ("step 1",) * 3
    for one in (env, another, vector):
        one.close()
    proxy.close()


class Gateway(Scripted):
    """Hands requests on to a server; then answers by itself, as long as it has a script."""

    def __init__(self, url):
        super().__init__()
        self.url = url

    def read(self, path, body):
        return urllib3.request("POST", self.url + path, body=body, retries=False).data

    def answer(self, request):
        return request


GATEWAYS_OWN = ("<html>502 Bad Gateway</html>", "", "[]", '{"error": "down"}', '{"message": "no"}')


def test_a_gateways_answer_is_no_server_and_asked_again(server, monkeypatch):
    gateway = Gateway(server.url)
    with running(gateway, monkeypatch):
        env = gym.make(FAULTY, url=gateway.address, patience=20).unwrapped
        env.reset(seed=0)
        before = FaultyEnv.stepped
        for status, body in itertools.product((502, 503, 504), GATEWAYS_OWN):
            gateway.plan(status, body)  # each in place of an answer that was there
            env.step("a")
        assert FaultyEnv.stepped == before + 15
        assert len(gateway.seen) == 2 + 2 * 15
        env.patience = 0
        gateway.plan(503, "<html>")
        with pytest.raises(ServerGone, match="status 503 and b'<html>', as a gateway does"):
            env.step("a")
        for status in (200, 404, 500):
            gateway.plan(status, "<html>")
            with pytest.raises(WrongVersion, match=f"no StepAgent server .* status {status}"):
                envs.make(FAULTY, url=gateway.address)


def test_a_slow_environment_holds_up_nobody_else(server):
    slow, quick = (gym.make(FAULTY, url=server.url).unwrapped for _ in range(2))
    slow.reset(seed=0)
    quick.reset(seed=0)
    thread = threading.Thread(target=lambda: slow.step("sleep 0.4"))
    thread.start()
    start = time.monotonic()
    for _ in range(5):
        quick.step("a")
    assert thread.is_alive(), f"five quick steps took {time.monotonic() - start:.2f} s"
    thread.join()
    slow.close()
    quick.close()


def test_a_step_that_hangs_ends_its_session_and_is_freed_in_the_end(server):
    env = gym.make(FAULTY, url=server.url).unwrapped
    env.reset(seed=0)
    threads = threading.active_count()
    with pytest.raises(StepTimeout, match=r"step took longer than 1\.5 s; the session is closed"):
        env.step("hang")
    assert server.sessions.stuck == 1
    assert env.reset(seed=0)[0].startswith("train/")  # a new session
    assert env.step("a")[0] == "step 1"
    faulty.release.set()
    wait_until(lambda: server.sessions.stuck == 0)
    env.close()
    wait_until(lambda: threading.active_count() < threads)


def test_a_server_with_too_much_hanging_is_unready(server):
    hanging = [gym.make(FAULTY, url=server.url).unwrapped for _ in range(16)]
    for env in hanging:
        env.reset(seed=0)

    def hang(env):
        with pytest.raises(StepTimeout):
            env.step("hang")

    threads = [threading.Thread(target=hang, args=(env,)) for env in hanging]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.ask("GET", "/readyz")[0] == 503
    assert server.ask("GET", "/healthz")[0] == 200
    faulty.release.set()
    wait_until(lambda: server.ask("GET", "/readyz")[0] == 200)


def test_a_flood_of_sessions_finds_the_limit():
    with Running(FAULTY, max_sessions=8) as server:
        refused, opened = [], []

        def open_one():
            try:
                opened.append(envs.make(FAULTY, url=server.url, patience=0, slow=0.1))
            except ServerFull as error:
                refused.append(error)

        threads = [threading.Thread(target=open_one) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(opened), len(refused)) == (8, 32)
        assert server.sessions.count == 8
        status, answer = server.ask("POST", "/v1/sessions", {"env": FAULTY})
        assert (status, answer["error"]["code"]) == (503, "full")
        opened[0].close()
        envs.make(FAULTY, url=server.url).close()
    wait_until(lambda: not FaultyEnv.open_now)


def test_the_refusal_of_a_flood_says_when_to_come_again():
    with Running(FAULTY, max_sessions=1) as server:
        server.ask("POST", "/v1/sessions", {"env": FAULTY})
        body = json.dumps({"env": FAULTY})
        answer = urllib3.request("POST", f"{server.url}/v1/sessions", body=body, retries=False)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    wait_until(lambda: not FaultyEnv.open_now)


def test_an_environment_that_raises_ends_its_episode_only(server):
    env = gym.make(FAULTY, url=server.url).unwrapped
    env.reset(seed=0)
    with pytest.raises(EnvironmentFailed, match="ZeroDivisionError: planted in the environment"):
        env.step("raise")
    with pytest.raises(gym.error.ResetNeeded):
        env.step("a")
    env.reset(seed=0)
    assert env.step("a")[0] == "step 1"
    with pytest.raises(OSError, match="no data here"):
        envs.make(FAULTY, url=server.url, broken=True)
    env.close()
    assert server.sessions.count == 0


def test_an_error_in_a_batch_reaches_its_environment(server):
    vector = RemoteVectorEnv(FAULTY, 3, url=server.url)
    vector.reset(seed=0)
    with pytest.raises(EnvironmentFailed, match="planted"):
        vector.step(("a", "raise", "a"))
    vector.reset(seed=0)
    assert tuple(vector.step(("a", "a", "a"))[0]) == ("step 1",) * 3
    vector.envs[1].server.call("DELETE", f"/v1/sessions/{vector.envs[1].session}")
    with pytest.raises(SessionLost, match="closed"):
        vector.step(("a", "a", "a"))
    vector.reset(seed=0)
    assert tuple(vector.step(("a", "a", "a"))[0]) == ("step 1",) * 3
    vector.close()


@pytest.mark.parametrize("begins_anew_by", ["step", "reset"])
def test_a_vector_goes_on_without_the_server_that_ended(server, begins_anew_by):
    with Running(FAULTY) as other:
        both = [server.url, other.url]
        vector = RemoteVectorEnv(FAULTY, 4, url=both, patience=0.3)
        texts = tuple(vector.reset(seed=0)[0])
        vector.step(("a",) * 4)
    if begins_anew_by == "step":
        before = FaultyEnv.stepped
        for error in (ServerGone, gym.error.ResetNeeded):  # no half of a step is taken
            with pytest.raises(error):
                vector.step(("b",) * 4)
        assert FaultyEnv.stepped == before + 2
    assert tuple(vector.reset(seed=0)[0]) == texts
    assert {env.server.url for env in vector.envs} == {server.url}
    assert tuple(vector.step(("a",) * 4)[0]) == ("step 1",) * 4
    assert server.sessions.count == 4
    vector.close()
    assert server.sessions.count == 0


def interrupt_once(monkeypatch, path, error):
    """Raises `error` in the client, once, when the answer to a call of `path` is there."""
    once = Server._once

    def interrupted(self, method, where, body):
        answer = once(self, method, where, body)
        if where.endswith(path):
            monkeypatch.undo()
            raise error
        return answer

    monkeypatch.setattr(Server, "_once", interrupted)


@pytest.mark.parametrize("path", ["/step", "/reset"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RemoteError("internal")])
def test_an_interrupted_call_costs_its_episode_only(server, monkeypatch, path, error):
    env = gym.make(FAULTY, url=server.url).unwrapped
    env.reset(seed=0)
    env.step("a")
    interrupt_once(monkeypatch, path, error)
    with pytest.raises(type(error)):
        env.reset() if path == "/reset" else env.step("b")
    assert server.sessions.count == 0  # the session in doubt is closed
    with pytest.raises(gym.error.ResetNeeded):
        env.step("b")
    env.reset(seed=0)
    assert env.step("a")[0] == "step 1"
    env.close()


def test_calls_out_of_order_open_a_new_session(server):
    vector = RemoteVectorEnv(FAULTY, 2, url=server.url)
    for env in vector.envs:
        env.reset(seed=0)
        env._number = 7
        with pytest.raises(RemoteError, match="out of order"):
            env.step("a")
    vector.reset(seed=0)
    vector.envs[1]._number = 7
    with pytest.raises(RemoteError, match="out of order"):
        vector.step(("a", "a"))
    vector.reset(seed=0)
    assert tuple(vector.step(("a", "a"))[0]) == ("step 1",) * 2
    assert server.sessions.count == 2
    vector.close()


def test_an_interrupted_vector_begins_anew(server, monkeypatch):
    vector = RemoteVectorEnv(FAULTY, 3, url=server.url)
    vector.reset(seed=0)

    batch = remote_vector._batch

    def interrupted(*sent):
        batch(*sent)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(remote_vector, "_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vector.step(("a", "a", "a"))
    assert server.sessions.count == 0
    vector.reset(seed=0)
    assert tuple(vector.step(("a", "a", "a"))[0]) == ("step 1",) * 3
    assert server.sessions.count == 3
    vector.close()


def test_a_session_dies_of_idling_and_is_freed():
    with Running(FAULTY, idle_seconds=0.3) as server:
        env = gym.make(FAULTY, url=server.url).unwrapped
        text, _ = env.reset(seed=3)
        threads = threading.active_count()
        wait_until(lambda: server.sessions.count == 0)
        wait_until(lambda: not FaultyEnv.open_now)
        wait_until(lambda: threading.active_count() < threads)
        with pytest.raises(SessionLost, match=r"idle: for 0\.3 s"):
            env.step("a")
        assert env.tasks == ("train/0", "train/1", "train/2")
        assert env.reset(seed=3)[0] == text
        env.close()


def test_a_busy_session_is_not_idle():
    with Running(FAULTY, idle_seconds=1) as server:
        env = gym.make(FAULTY, url=server.url).unwrapped
        env.reset(seed=3)
        assert env.step("sleep 2")[0] == "step 1"
        env.close()


def java():
    return [p for p in psutil.Process().children() if "java" in p.name()]


def test_java_killed_under_scienceworld():
    with Running(SCIENCEWORLD, step_seconds=20) as server:
        env = gym.make(SCIENCEWORLD, url=server.url).unwrapped
        text, _ = env.reset(seed=0)
        for process in java():
            process.kill()
        with pytest.raises(EnvironmentFailed, match="SimulatorError"):
            env.step("look around")
        assert env.reset(seed=0)[0] == text
        assert env.step("look around")[4]["valid"]
        env.close()


def test_scienceworlds_place_in_java_is_freed():
    from stepagent.envs.scienceworld import jvm

    def simulators():
        return sum(c._socket.fileno() >= 0 for c in jvm.java_process().connections)

    with Running(SCIENCEWORLD, idle_seconds=4) as server:
        before = simulators()
        vanishing = [gym.make(SCIENCEWORLD, url=server.url).unwrapped for _ in range(3)]
        for env in vanishing:
            env.reset(seed=0)
        assert simulators() == before + 3
        vanishing[0].close()
        wait_until(lambda: simulators() == before)  # two of them by idling
        assert server.sessions.count == 0


def test_sigterm_answers_what_runs_and_frees_the_rest():
    with Command("--env", FAULTY) as served:
        env = gym.make(FAULTY, url=served.url, patience=0).unwrapped
        env.reset(seed=0)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(env.step("sleep 1")[0]))
        thread.start()
        time.sleep(0.4)
        assert served.stop(signal.SIGTERM) == 0
        thread.join()
        assert answers == ["step 1"]
        lines = [json.loads(line) for line in served.lines]
        assert all({"time", "level", "event"} <= set(line) for line in lines)
        ends = [line for line in lines if line["event"] == "session closed"]
        assert [line["reason"] for line in ends] == ["shutdown: the server was stopped"]
        assert env.session not in "".join(served.lines), "a session's secret was logged"


@pytest.mark.parametrize(
    ("options", "token", "said"),
    [
        (["--host", "0.0.0.0"], "", "set STEPAGENT_TOKEN"),
        (["--host", "example.org"], "", "--allow-unauthenticated"),
        (["--max-sessions", "0"], "", "max_sessions is 0: it must be at least 1"),
        (["--port", "99999"], "", "port is 99999: it must be from 0 to 65535"),
        (["--port", "-1"], "", "port is -1"),
        (["--idle-seconds", ".nan"], "", "idle_seconds is nan"),
        (["--env-args", '{"tests/Guess-v0": {}}'], "", "unknown key"),
        (["--env", "stepagent/Chess-v0"], "", "no environment 'stepagent/Chess-v0'"),
    ],
)
def test_bad_options_end_the_command(options, token, said, capsys, monkeypatch):
    monkeypatch.setenv("STEPAGENT_TOKEN", token)
    assert command.main(["--env", FAULTY, *options]) == 2
    assert said in capsys.readouterr().err


def test_listening_elsewhere_needs_a_token_or_a_word():
    config = command.Config(env=[FAULTY], host="0.0.0.0")
    assert command.problem(config, None)
    assert not command.problem(config, "secret")
    config.published = "127.0.0.1"
    assert not command.problem(config, None)
    config.published = "192.0.2.1"
    assert "--published 192.0.2.1 can be reached" in command.problem(config, None)
    assert command.problem(command.Config(env=[FAULTY], published="0.0.0.0"), None)
    config.allow_unauthenticated = True
    assert not command.problem(config, None)
    for host in ("127.0.0.1", "::1", "[::1]", "localhost", "127.8.8.8"):
        assert not command.problem(command.Config(env=[FAULTY], host=host), None)


def test_missing_data_end_the_command_before_anybody_comes(tmp_path):
    args = json.dumps({"stepagent/WebShop-v0": {"data": str(tmp_path / "nowhere")}})
    done = subprocess.run(
        [sys.executable, "-m", "envs.serve", "--env", "stepagent/WebShop-v0", "--env-args", args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
