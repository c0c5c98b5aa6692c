"""In a checkout the packages lie at the top level: `envs` there is `stepagent.envs`, and so on.

There `python -m eval.run` and `import envs` work too. Each short name leads to the module of the
full name, so that no module is loaded and no class exists twice. An installed StepAgent has only
the full names; `envs`, `eval` and the others are then whatever the user has.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType


def alias(package: str) -> None:
    """Called by a package as it is imported: under its short name, such as `envs`, this puts the
    package of the full name in its place."""
    if package.startswith("stepagent."):
        return
    if not any(isinstance(finder, _ShortNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ShortNames())
    sys.modules[package] = importlib.import_module(f"stepagent.{package}")


class _ShortNames(MetaPathFinder):
    """Finds `envs.core` as `stepagent.envs.core`, where `envs` is `stepagent.envs`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = fullname.partition(".")
        full_package = sys.modules.get(f"stepagent.{package}")
        if not rest or full_package is None or sys.modules.get(package) is not full_package:
            return None
        full = importlib.util.find_spec(f"stepagent.{fullname}")
        if full is None:
            return None
        spec = ModuleSpec(fullname, _FullName(full), origin=full.origin)
        spec.submodule_search_locations = full.submodule_search_locations
        return spec


class _FullName(InspectLoader):
    """Hands out the module of the full name instead of loading the file again."""

    def __init__(self, full: ModuleSpec):
        self.full = full

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return importlib.import_module(self.full.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.full  # the import system has just written the short name's

    def is_package(self, fullname: str) -> bool:
        return self.full.submodule_search_locations is not None

    def get_code(self, fullname: str) -> CodeType | None:
        """For `python -m eval.run`, which runs a module's code and not the module."""
        return self._real.get_code(self.full.name)

    def get_source(self, fullname: str) -> str | None:
        return self._real.get_source(self.full.name)

    @property
    def _real(self) -> InspectLoader:
        loader = self.full.loader
        assert isinstance(loader, InspectLoader)
        return loader
