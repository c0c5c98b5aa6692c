"""Tests with other libraries run with `make integrations` (pytest's `-m integration`)."""

from __future__ import annotations

import pytest

from tests.integrations import environments

NAME = "integration"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """They run only with `-m integration`, and skip without the environment of their library."""
    if "integration" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker(NAME)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        for marker in item.iter_markers(NAME):
            (library,) = marker.args
            if not environments.binary(library, "python").exists():
                reason = f"no environment of {library}: `make integrations` makes it"
                item.add_marker(pytest.mark.skip(reason=reason))
