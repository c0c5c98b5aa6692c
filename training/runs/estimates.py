"""What a run needs of memory and disk, said before it starts.

Memory is that of the trainer's device in an update:

    weights + trained · (4 gradient + 8 AdamW)      bytes
    + T · h · L · (21 b; 1 b with checkpointing)    activations that the backward pass needs
    + T · h · L · 22                                with adapters in float32 on a base of 16 bits
    + T · V · 12                                    logits, their float32 copy and its gradient

with T tokens per forward pass, h the width, L the layers, V the vocabulary and b the bytes of a
number in the forward pass. 21 and 22 are counted: Llama blocks of three shapes keep 19 to 24 numbers
in eager mode, and 22 to 24 bytes more where each adapter keeps its input in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from stepagent.training.policy import Policy

_PER_LAYER = 21
_ADAPTERS = 22
_LOGITS = 12


@dataclass(frozen=True)
class Estimate:
    """About what a run needs, in bytes."""

    state: int
    """Weights, gradients and optimiser."""
    activations: int
    """What one forward pass leaves for its backward pass."""
    disk: int
    """Policies and checkpoints, at most."""

    def text(self, free: int) -> str:
        """One line; `free` bytes are left on the disk."""
        memory = self.state + self.activations
        return (
            f"needs about {_size(memory)} of memory in an update ({_size(self.state)} of weights, "
            f"gradients and optimiser) and up to {_size(self.disk)} on disk ({_size(free)} free)"
        )


def estimate(policy: Policy, tokens: int, disk: int) -> Estimate:
    """Of a policy that is trained with so many tokens per forward pass."""
    parameters = list(policy.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in parameters)
    config = policy.model.config.get_text_config()
    dtype = getattr(policy.model, "compute_dtype", policy.model.dtype)
    per_layer = dtype.itemsize
    if not policy.config.gradient_checkpointing:
        converted = dtype.itemsize < 4 and not all(p.requires_grad for p in parameters)
        per_layer = dtype.itemsize * _PER_LAYER + (_ADAPTERS if converted else 0)
    width = config.hidden_size * config.num_hidden_layers * per_layer
    activations = tokens * (width + config.vocab_size * _LOGITS)
    return Estimate(weights + trained * 12, activations, disk)


def _size(size: int) -> str:
    """
    >>> _size(2_340_000), _size(15_100_000_000)
    ('2.3 MB', '15.1 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
