"""Tests with other people's libraries: `make integrations`, or pytest's `-m integration`."""

from __future__ import annotations

import pytest

from tests.integrations import environments


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = "integration" in config.option.markexpr.replace("not integration", "")
    for item in items:
        library = item.get_closest_marker("integration")
        if library and not wanted:
            item.add_marker(pytest.mark.skip(reason="runs with `make integrations`"))
        elif library and not environments.binary(library.args[0], "python").exists():
            reason = f"no environment of {library.args[0]}: `make integrations` makes it"
            item.add_marker(pytest.mark.skip(reason=reason))
