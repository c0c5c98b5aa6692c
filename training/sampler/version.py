"""A version of the policy that engines serve: its name, its files, and how it can be recognised."""

from __future__ import annotations

import hashlib
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from stepagent.agents.models import evaluating
from stepagent.errors import SetupError
from stepagent.files import write_atomically
from stepagent.training.policy import Policy

PROBE_TOKENS = 64
"""Tokens whose log-probabilities an engine and the trainer must agree on."""


class SamplerError(SetupError, RuntimeError):
    """Replies cannot be drawn as the configuration says; the message says what to change."""


@dataclass(frozen=True)
class Version:
    """A published policy."""

    name: str
    path: Path
    """Where its files are, as the engines see it."""
    is_adapter: bool
    probe: tuple[int, ...]
    """Token ids, at least two."""
    log_probs: tuple[float, ...]
    """The trainer's own of each token of the probe but the first."""


def published(policy: Policy, prefix: str, folder: Path, probe: tuple[int, ...]) -> Version:
    """The policy as it is now, on the shared disk. The name is the prefix and a checksum of all
    trained weights, so that the same weights have the same name after a restart."""
    name = f"{prefix}-{digest(policy)}"
    path = folder / name
    if not path.is_dir():
        try:
            write_atomically(path, policy.save)
        except OSError as error:
            raise SamplerError(
                f"the policy cannot be published: {error}: set sampler.shared to a folder that "
                "trainer and engines share and the trainer can write"
            ) from error
    return Version(name, path, policy.has_adapter, probe, _log_probs(policy, probe))


def remove_others(version: Version, prefix: str) -> None:
    """Deletes the files of earlier versions."""
    for path in version.path.parent.glob(f"{prefix}-*"):
        if path.is_dir() and path != version.path:
            shutil.rmtree(path, ignore_errors=True)


def prefix_of(output: str) -> str:
    """What the names of a run's versions begin with; two runs never share one.

    >>> prefix_of("/data/runs/my run")
    'my-run-c2ac59'
    """
    path = Path(output).absolute()
    number = hashlib.blake2b(str(path).encode(), digest_size=3).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', path.name).strip('-') or 'run'}-{number}"


def digest(policy: Policy) -> str:
    """A checksum of the trained weights, every byte of them; 16 hex digits."""
    trained = sorted((n, p.detach()) for n, p in policy.model.named_parameters() if p.requires_grad)

    def of(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        weights = tensor.to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        head = f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode()
        return hashlib.blake2b(weights.data, key=hashlib.blake2b(head).digest()).digest()

    with ThreadPoolExecutor() as pool:  # hashing frees the interpreter
        parts = list(pool.map(of, trained))
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()


@torch.no_grad()
def _log_probs(policy: Policy, probe: tuple[int, ...]) -> tuple[float, ...]:
    """log π of each token of the probe but the first."""
    ids = torch.tensor([probe], device=policy.device)
    with evaluating(policy.model):
        logits = policy.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    picked = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])
    return tuple(picked.squeeze(-1).tolist())


def why_not_loadable(policy: Policy) -> str:
    """Why vLLM cannot load the policy's adapter, by its settings; "" if it can, as far as they
    tell, or if there is none. (Its rank is compared with the engine's limit when it is loaded.)"""
    if not policy.has_adapter:
        return ""
    settings = policy.model.peft_config["default"]
    refused = {
        "use_dora": "DoRA",
        "lora_bias": "a bias of the adapter",
        "modules_to_save": "modules that are trained in full beside the adapter (modules_to_save)",
        "layer_replication": "replicated layers",
        "trainable_token_indices": "single tokens that are trained (trainable_token_indices)",
    }
    reasons = [text for name, text in refused.items() if getattr(settings, name, None)]
    if getattr(settings, "bias", "none") != "none":
        reasons.append(f"trained biases (bias: {settings.bias})")
    initial = str(getattr(settings, "init_lora_weights", True)).lower()
    if initial.startswith(("pissa", "olora", "corda", "loftq")):
        reasons.append(f"an initialisation that changes the base ({initial})")
    return " and ".join(reasons)
