"""A cache of the tests' own, and the real files."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="package")
def cache(tmp_path_factory):
    """The encyclopedia's corpus and index are built once for all tests of this folder."""
    before = os.environ.get("STEPAGENT_CACHE")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["STEPAGENT_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["STEPAGENT_CACHE"]
    else:
        os.environ["STEPAGENT_CACHE"] = before


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real benchmark files."""
    folder = os.environ.get("STEPAGENT_DATA")
    if not folder:
        pytest.skip("STEPAGENT_DATA is not set: no files of HotpotQA, 2WikiMultihopQA, MuSiQue")
    return Path(folder)
