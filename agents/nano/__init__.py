"""`nano`, the language model that comes with this package: a small Llama that has read the
environments' texts (`stepagent pretrain --config nano`).

Its folder `model/` holds float16 weights, tokenizer and model card. It is read from there and never
downloaded.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from stepagent.errors import UsageError
from stepagent.files import read_bytes, write_atomically

NANO = "nano"
FOLDER = Path(__file__).with_name("model")
NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""Files without which it is no model; the digest is over these and the chat template."""


def folder() -> Path:
    """Where the model lies. Raises UsageError where it does not, or not completely."""
    if missing := _missing(FOLDER):
        raise UsageError(
            f"the model {NANO!r} is not in this installation ({FOLDER} lacks {', '.join(missing)})"
            ": make it with `stepagent pretrain --config nano --install`, in about two hours"
        )
    return FOLDER


def _missing(folder: Path) -> list[str]:
    return [name for name in NEEDED if not (folder / name).is_file()]


def digest() -> str:
    """Identifies the weights and the tokenizer (16 hex digits). Raises UsageError as `folder`."""
    result = hashlib.sha256()
    for path in sorted(folder().iterdir()):
        if path.name in NEEDED or path.name.startswith("chat_template"):
            result.update(path.name.encode())
            result.update(read_bytes(path))
    return result.hexdigest()[:16]


def origin(model: str) -> dict[str, str]:
    """Which model `nano` is here, for what begins from it; {} for a model of another name."""
    return {"model": NANO, "digest": digest()} if model == NANO else {}


def install(source: Path) -> Path:
    """Copies a model that `stepagent pretrain` has finished to where `nano` is looked for; returns
    that folder. Raises UsageError where the source is not complete, OSError."""
    if missing := _missing(source):
        raise UsageError(f"{source} is no finished model: it lacks {', '.join(missing)}")
    # Without the files' modes: safetensors writes one that its owner alone may read.
    copy = shutil.copyfile
    write_atomically(FOLDER, lambda to: shutil.copytree(source, to, copy_function=copy))
    return FOLDER
