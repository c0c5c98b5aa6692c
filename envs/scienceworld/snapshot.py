"""What the starts of the Java process share, in the cache: the changed classes and a snapshot.

The snapshot is Java's ahead-of-time cache (JEP 483 and 515): the loaded and linked classes, and
what the compiler learnt about them in a recorded run. With it, the first reset takes half the time.
Recording takes several seconds, so the second start on a machine does it: a machine that starts
once has no use for it. Java checks that a snapshot fits its version and its jars, and ignores it
otherwise.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from stepagent.envs.core import checksum
from stepagent.envs.scienceworld import classfile, patches, taskmaker
from stepagent.files import (
    Lock,
    NotAFile,
    cache_folder,
    read_bytes,
    read_text,
    write_atomically,
    write_text,
)

_SOURCES = (
    Path(classfile.__file__),
    Path(taskmaker.__file__),
    *sorted(Path(patches.__file__).parent.glob("*.py")),
)


class StartFiles:
    """The folder for the simulator in `jar`, run by `java` with `flags`.

    It is a temporary folder where the cache cannot be written.
    """

    def __init__(self, java: Path, jar: Path, flags: tuple[str, ...]):
        state = [jar.stat(), java.stat()]
        parts = [
            f"{path}{s.st_size}{s.st_mtime_ns}" for path, s in zip((jar, java), state, strict=True)
        ]
        sources = (read_bytes(source) for source in _SOURCES)
        self.path = cache_folder() / "scienceworld" / checksum(*parts, *flags, *sources)
        self.is_first = not self._fits(self.patch)
        if self.is_first:

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

    def snapshot(self, record: Callable[[Path], None]) -> Path | None:
        """The snapshot, or None where there is none yet, or only a damaged one.

        `record` writes one, unless this is the first start or another process is at it.
        """
        file = self.path / "classes.aot"
        if self._fits(file):
            return file
        if self.is_first:
            return None
        try:
            with Lock(self.path / "lock"):
                if not self._fits(file):
                    self._add(file, record)
            return file
        except OSError:  # Locked is one: a start without a snapshot is slower, no more
            return None

    def _add(self, file: Path, write: Callable[[Path], None]) -> None:
        """Writes a file, then its size and checksum beside it."""
        write_atomically(file, write)
        write_text(file.with_suffix(".json"), json.dumps(_measure(file)))

    @staticmethod
    def _fits(file: Path) -> bool:
        """Whether a file is there, and is what was written."""
        try:
            return bool(json.loads(read_text(file.with_suffix(".json"))) == _measure(file))
        except (OSError, ValueError, NotAFile):
            return False


def _measure(file: Path) -> list[int]:
    data = read_bytes(file)
    return [len(data), zlib.crc32(data)]
