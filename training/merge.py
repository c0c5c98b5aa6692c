"""`stepagent merge ADAPTER --out DIR`: folds an adapter into its base.

The result is a model without PEFT, for servers and libraries that load no adapters. The sum is
taken in float32 and rounded once.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from stepagent.command_line import Command
from stepagent.errors import UsageError
from stepagent.files import is_file


@dataclass
class Config:
    """Folds an adapter, such as a run's `final`, into its base model."""

    adapter: Path
    """Directory of the adapter, as training or PEFT saved it."""
    out: Path
    """Directory to write the model to; it must not exist yet."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the weights that are written."""


def merge(config: Config) -> Path:
    """Writes the merged model with its tokenizer. Raises UsageError, ModelError and OSError."""
    from stepagent.agents import trained
    from stepagent.agents.models import load_model, load_tokenizer, pick_dtype, quiet
    from stepagent.files import write_atomically

    if not is_file(config.adapter / "adapter_config.json"):
        raise UsageError(
            f"{config.adapter} holds no adapter (no adapter_config.json): name the directory that "
            "a run with policy.lora.r above 0 wrote, such as RUN/final"
        )
    if config.out.exists():
        raise UsageError(f"{config.out} exists: name another directory, or delete it")
    model = load_model(config.adapter, "float32", "cpu", merge=True).to(pick_dtype(config.dtype))
    tokenizer = load_tokenizer(config.adapter)

    def save(partial: Path) -> None:
        with quiet():
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        if is_file(told := config.adapter / trained.FILE):
            shutil.copy(told, partial)

    write_atomically(config.out, save)
    return config.out


def run(config: Config) -> int:
    out = merge(config)
    Console().print(f"{out} holds the merged model ({config.dtype})", markup=False)
    return 0


main = Command("merge", Config, run, positional="adapter")


if __name__ == "__main__":
    sys.exit(main())
