"""A Ray cluster of two nodes with one CPU each, in this machine."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import psutil
import pytest

MEMORY = 100_000_000
START_SECONDS = 400.0
"""On a busy machine a node needs longer than Ray's own 30 seconds."""
PATIENCE = {
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_gcs_rpc_server_connect_timeout_s": "600",
    "RAY_gcs_server_request_timeout_seconds": "600",
    "RAY_py_gcs_connect_timeout_s": "600",
    "RAY_health_check_failure_threshold": "100",
    "RAY_worker_register_timeout_seconds": "600",
}
"""Variables with which Ray takes nobody for dead who is only slow. It reads them when it is
imported."""
os.environ.update(PATIENCE)


@dataclass
class Nodes:
    address: str
    cluster: Any
    second: Any

    def processes(self) -> list[psutil.Process]:
        """What starts the workers of each node."""
        return [
            psutil.Process(node.all_processes["raylet"][0].process.pid)
            for node in self.cluster.list_all_nodes()
        ]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def two_nodes(second: Mapping[str, str] | None = None) -> Iterator[Nodes]:
    """`second`: environment variables of the second node alone."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'stepagent[cluster]'")
    from ray import _raylet
    from ray._private import services
    from ray.cluster_utils import Cluster

    def get_node(*arguments: Any) -> Any:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def node() -> dict[str, Any]:
        port = _free_port()
        return {"num_cpus": 1, "object_store_memory": MEMORY, "runtime_env_agent_port": port}

    # Newer versions wait for the ports of these, half a minute and no longer.
    unstarted = ("DASHBOARD_AGENT_LISTEN", "METRICS_AGENT", "METRICS_EXPORT")
    constants = [f"{name}_PORT_NAME" for name in unstarted]
    unused = [getattr(_raylet, name) for name in constants if hasattr(_raylet, name)]

    def start_raylet(*arguments: Any, **options: Any) -> Any:
        for service in unused:
            node_id, session = arguments[2], arguments[11]
            _raylet.persist_port(session, node_id, service, -1)
        return start(*arguments, **options)

    ask, start = services.get_node, services.start_raylet
    variables = {"env_vars": dict(second)} if second else {}
    with (
        mock.patch.object(services, "get_node", get_node),
        mock.patch.object(services, "start_raylet", start_raylet),
        mock.patch.object(services, "start_api_server", return_value=(None, None)),  # a dashboard
    ):
        cluster = Cluster(initialize_head=True, head_node_args=node())
        try:
            yield Nodes(cluster.address, cluster, cluster.add_node(**node(), **variables))
        finally:
            cluster.shutdown()
