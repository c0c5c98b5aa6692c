"""What starts of the Java process have in common, kept in the cache: changed classes, and a snapshot.

The snapshot is Java's ahead-of-time cache (JEP 483 and 515): the classes loaded and linked, and what
the compiler learnt of them in a recorded run. With it the first reset takes half the time. Recording
takes several seconds, so the second start on a machine does it: one that starts once has no use for
it. Java checks that a snapshot fits its version and its jars, and starts without one that does not.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from stepagent.envs.core import checksum
from stepagent.envs.scienceworld import classfile, patches, taskmaker
from stepagent.files import Lock, Locked, cache_folder, write_atomically, write_text

_SOURCES = (classfile, patches, taskmaker)


class StartFiles:
    """The folder of what is kept for the simulator in `jar`, run by `java` with `flags`.

    `path` is a temporary folder where the cache cannot be written.
    """

    def __init__(self, java: Path, jar: Path, flags: tuple[str, ...]):
        state = [jar.stat(), java.stat()]
        parts = [
            f"{path}{s.st_size}{s.st_mtime_ns}" for path, s in zip((jar, java), state, strict=True)
        ]
        sources = (Path(str(module.__file__)).read_bytes() for module in _SOURCES)
        self.path = cache_folder() / "scienceworld" / checksum(*parts, *flags, *sources)
        self.is_new = not self._fits(self.patch)
        if self.is_new:

            def write(file: Path) -> None:
                patches.write_patch(jar, file, patches.CHANGES)

            try:
                with Lock(self.path / "lock", wait=True):
                    if not self._fits(self.patch):
                        self._add(self.patch, write)
            except OSError:
                self._temporary = tempfile.TemporaryDirectory(prefix="stepagent-scienceworld-")
                self.path = Path(self._temporary.name)
                write(self.patch)

    @property
    def patch(self) -> Path:
        """The jar of changed classes."""
        return self.path / "patch.jar"

    @property
    def snapshot(self) -> Path | None:
        """The snapshot, or None where there is none (or a damaged one)."""
        file = self.path / "classes.aot"
        return file if self._fits(file) else None

    def record(self, run: Callable[[Path], None]) -> None:
        """Has `run` write the snapshot, unless this is the first start or another process does it."""
        if self.is_new or self.snapshot:
            return
        try:
            with Lock(self.path / "lock"):
                if not self.snapshot:
                    self._add(self.path / "classes.aot", run)
        except (Locked, OSError):
            pass  # a start without a snapshot is slower, no more

    def _add(self, file: Path, write: Callable[[Path], None]) -> None:
        """Has a file written, and notes its size and checksum."""
        write_atomically(file, write)
        write_text(file.with_suffix(".json"), json.dumps(_measure(file)))

    @staticmethod
    def _fits(file: Path) -> bool:
        """Whether a file is as it was written."""
        try:
            return bool(json.loads(file.with_suffix(".json").read_text()) == _measure(file))
        except (OSError, ValueError):
            return False


def _measure(file: Path) -> list[int]:
    data = file.read_bytes()
    return [len(data), zlib.crc32(data)]
