"""A Ray cluster of two nodes with one CPU each, in this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

MEMORY = 100_000_000


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


@contextmanager
def two_nodes(second: Mapping[str, str] | None = None) -> Iterator[Nodes]:
    """`second`: environment variables of the second node alone."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'stepagent[cluster]'")
    from ray.cluster_utils import Cluster

    first = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=first)
    try:
        variables = {"env_vars": dict(second)} if second else {}
        node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY, **variables)
        yield Nodes(cluster.address, cluster, node)
    finally:
        cluster.shutdown()
