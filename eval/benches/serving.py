"""A server in a separate process, for benchmarks, and its own metrics."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from types import TracebackType

from stepagent import optional
from stepagent.errors import UserError


class Served:
    """`with Served("stepagent/WebShop-v0") as server:` starts it on a free port."""

    def __init__(self, *env_ids: str, **options: float):
        optional.require("uvicorn", "a server")
        env_options = [part for env_id in env_ids for part in ("--env", env_id)]
        other_options = [f"--{name.replace('_', '-')}={value:g}" for name, value in options.items()]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "stepagent.envs.serve",
                *env_options,
                *other_options,
                "--port=0",
                "--log-level=warning",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = ""
        assert self.process.stderr is not None
        log = ""
        for line in self.process.stderr:
            log += line
            if address := re.search(r"running on (http://[\d.:]+)", line):
                self.url = address.group(1)
                break
        else:
            raise UserError(f"the server did not start. It says:\n{log[-2000:].rstrip()}")

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
        figures: dict[str, float] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                figures[name] = figures.get(name, 0.0) + float(value)
        return figures

    def megabytes(self) -> float:
        """Resident memory of the server and its child processes."""
        figures = self.figures()
        children = figures["stepagent_children_resident_memory_bytes"]
        return (figures["process_resident_memory_bytes"] + children) / 1e6
