"""The Ray cluster of a command: what is said where there is none, and how much it holds."""

import importlib.util
from types import SimpleNamespace

import pytest

from stepagent import ray_cluster
from stepagent.errors import UsageError
from stepagent.eval.run import main
from stepagent.optional import MissingPackage
from tests.toy_env import ID


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:nonsense"])
def test_no_cluster_at_the_address(address, tmp_path, capsys):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'stepagent[cluster]'")
    arguments = ["--env", ID, "--agent", "expert", "--out", str(tmp_path), "--launch", "ray"]
    assert main([*arguments, "--ray-address", address]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"there is no Ray cluster at {address}" in said
    assert "ray start --head" in said
    assert not (tmp_path / "results.jsonl").exists()


def test_a_missing_package_is_said_with_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(
            MissingPackage, match=r"the package ray, .*pip install 'stepagent\[cluster\]'"
        ),
        ray_cluster.connected(""),
    ):
        pass


def test_what_a_process_takes():
    assert ray_cluster.resources({}) == {"num_cpus": 1}
    assert ray_cluster.resources({"num_gpus": 1}) == {"num_cpus": 1, "num_gpus": 1}
    with pytest.raises(UsageError, match=r"ray: unknown key 'gpus'. There are: num_cpus, num_gpus"):
        ray_cluster.resources({"gpus": 1})


def test_room_is_counted_node_by_node():
    """Two nodes of three free CPUs hold two processes of two CPUs, not three."""
    nodes = [
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 2.0, "memory": 8e9}},
        {"Alive": True, "Resources": {"CPU": 3.0, "memory": 8e9}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    ray = SimpleNamespace(nodes=lambda: nodes)
    assert ray_cluster.room(ray, {"num_cpus": 1}) == 6
    assert ray_cluster.room(ray, {"num_cpus": 2}) == 2
    assert ray_cluster.room(ray, {"num_cpus": 1, "num_gpus": 0.5}) == 3
    assert ray_cluster.room(ray, {"num_cpus": 1, "memory": 4e9}) == 4
    assert ray_cluster.room(ray, {"num_cpus": 1, "resources": {"fast": 1}}) == 0
