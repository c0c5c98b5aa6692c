import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One cache for all tests of the shop, apart from the user's own."""
    before = os.environ.get("STEPAGENT_CACHE")
    os.environ["STEPAGENT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["STEPAGENT_CACHE"]
    else:
        os.environ["STEPAGENT_CACHE"] = before


@pytest.fixture(scope="session")
def real():
    """The folder of the real 1,000 products."""
    folder = os.environ.get("STEPAGENT_DATA")
    if not folder:
        pytest.skip("STEPAGENT_DATA is not set: no real products and no recorded sessions")
    return Path(folder) / "webshop"
