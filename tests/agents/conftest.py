"""Fixtures for tests of agents: one thread for tiny models, an environment, a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.agents.count_env import PROMPT, CountEnv
from tests.agents.tiny_models import make_tokenizer

HAVE_TORCH = find_spec("torch") is not None
NEED_TORCH = ["test_transformers.py", "test_models.py", "test_chat.py", "test_trained.py"]
collect_ignore = [] if HAVE_TORCH else NEED_TORCH


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Threads slow tiny models down, many times over on a shared machine."""
    if not HAVE_TORCH:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.md"
    path.write_text(PROMPT)
    return path


@pytest.fixture
def count_env(prompt_file: Path) -> CountEnv:
    env = CountEnv(prompt_file)
    env.reset(seed=0)
    return env


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    pytest.importorskip("transformers")
    return make_tokenizer()
