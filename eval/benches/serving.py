"""A server in a process of its own, for benchmarks, and what it says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from types import TracebackType


class Served:
    """`with Served("stepagent/WebShop-v0") as server:` runs the command on a free port."""

    def __init__(self, *env_ids: str, **options: float):
        named = [part for env_id in env_ids for part in ("--env", env_id)]
        more = [f"--{name.replace('_', '-')}={value:g}" for name, value in options.items()]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "stepagent.envs.serve",
                *named,
                *more,
                "--port=0",
                "--log-level=warning",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = ""
        assert self.process.stderr is not None
        said = ""
        for line in self.process.stderr:
            said += line
            if found := re.search(r"running on (http://[\d.:]+)", line):
                self.url = found.group(1)
                break
        else:
            raise RuntimeError(f"the server did not start: {said[-2000:]}")

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        try:
            self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def figures(self) -> dict[str, float]:
        """What `/metrics` shows, summed over labels."""
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=30).read().decode()
        found: dict[str, float] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def megabytes(self) -> float:
        """Resident memory of the server and what it started."""
        figures = self.figures()
        children = figures["stepagent_children_resident_memory_bytes"]
        return (figures["process_resident_memory_bytes"] + children) / 1e6
