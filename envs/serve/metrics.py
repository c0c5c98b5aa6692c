"""A server's metrics, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server; `process_*` (memory, files, processor time) are included."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.opened = Counter(
            "stepagent_sessions_opened", "Sessions opened", ["env"], registry=registry
        )
        self.closed = Counter(
            "stepagent_sessions_closed", "Sessions over", ["env", "reason"], registry=registry
        )
        self.refused = Counter(
            "stepagent_sessions_refused", "Sessions refused for want of a place", registry=registry
        )
        self.calls = Histogram(
            "stepagent_call_seconds",
            "Time that environments take, by call (make, reset, step, ask)",
            ["env", "call"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.requests = Counter(
            "stepagent_requests", "Requests answered", ["status"], registry=registry
        )
        self.repeated = Counter(
            "stepagent_repeated_calls", "Calls answered from what was kept", registry=registry
        )
        self.stuck = Gauge(
            "stepagent_stuck_threads", "Threads hanging in an environment", registry=registry
        )

    def watch(self, count: Callable[[str], int], sessions: Any) -> None:
        """Adds the gauges that are computed only when read."""
        self.registry.register(_Watch(count, sessions))  # type: ignore[arg-type]

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Watch:
    """Open sessions by environment, threads, and the memory of child processes (Java)."""

    def __init__(self, count: Callable[[str], int], sessions: Any):
        self._count, self._sessions = count, sessions

    def collect(self) -> Iterator[GaugeMetricFamily]:
        open_now = GaugeMetricFamily("stepagent_sessions", "Open sessions", labels=["env"])
        for name in self._sessions.offers:
            open_now.add_metric([name], self._count(name))
        yield open_now
        process = psutil.Process()
        yield GaugeMetricFamily("stepagent_threads", "Threads", value=process.num_threads())
        children = 0
        for child in process.children(recursive=True):
            try:
                children += child.memory_info().rss
            except psutil.NoSuchProcess:
                pass
        yield GaugeMetricFamily(
            "stepagent_children_resident_memory_bytes",
            "Memory of the processes that environments started, such as Java",
            value=children,
        )
