"""The Ray cluster that evaluations and sweeps are spread over."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from stepagent import optional
from stepagent.errors import SetupError, UsageError

_CONNECT_SECONDS = 10.0
_RESOURCES = ("num_cpus", "num_gpus", "memory", "resources", "accelerator_type", "label_selector")


class NoCluster(SetupError):
    """There is no Ray cluster at the address."""


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at an address for as long as the body runs.

    Without an address it is that of `RAY_ADDRESS`, else of the cluster that this machine is part
    of; "local" starts one on this machine for the body alone. A connection that the process has
    already is used, and stays. Raises NoCluster, and MissingPackage without Ray.
    """
    optional.require("ray", "launch: ray")
    import ray

    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS", "") or "auto"
    _check(address)
    refused = (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except refused as error:
        raise NoCluster(_message(address, str(error).splitlines()[0])) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def resources(options: Mapping[str, Any]) -> dict[str, Any]:
    """What one process takes of the cluster, as Ray's own options; by default one CPU.

    Raises UsageError for options that are no resources.
    """
    for name in options:
        if name not in _RESOURCES:
            raise UsageError(f"ray: unknown key {name!r}. There are: {', '.join(_RESOURCES)}")
    return {"num_cpus": 1, **options}


def room(ray: Any, needs: Mapping[str, Any]) -> int:
    """How many processes with such needs the nodes of the cluster hold, were they idle."""
    wanted = {
        "CPU": needs.get("num_cpus"),
        "GPU": needs.get("num_gpus"),
        "memory": needs.get("memory"),
        **needs.get("resources", {}),
    }
    wanted = {name: float(amount) for name, amount in wanted.items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    counts = [
        min((int(node.get(name, 0.0) / amount) for name, amount in wanted.items()), default=1)
        for node in nodes
    ]
    return sum(counts)


def _check(address: str) -> None:
    """Raises NoCluster where nothing listens at HOST:PORT; Ray itself would try for a minute."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise NoCluster(_message(address, str(error))) from error


def _message(address: str, why: str) -> str:
    place = "on this machine" if address == "auto" else f"at {address}"
    return (
        f"there is no Ray cluster {place} ({why}): start one with `ray start --head`, name another "
        "address (--ray-address, RAY_ADDRESS), or take --ray-address local for this machine alone"
    )
