"""What a run needs of memory and disk, said before it starts.

Memory is that of the trainer's device in an update:

    weights + trained · (4 gradient + 8 AdamW)      bytes
    + T · L · (9 h + 4 m) · b                       activations that the backward pass needs
    + T · V · 12                                    logits, their float32 copy and its gradient

with T tokens per forward pass, h the width, m that of an MLP's hidden layer, L the layers and V the
vocabulary. 9 and 4 are counted in Llama, Mistral and Qwen2 blocks in eager mode. b is 4 bytes, also
for adapters on a base of 16 bits, since each keeps its input in float32; where all weights are
trained in bfloat16 (autocast) it is 3, and the weights are there once more, in 2 bytes each. With
checkpointing a layer keeps its input alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from stepagent.training.policy import Policy

_WIDTH = 9
_MLP = 4
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
    autocast = hasattr(policy.model, "compute_dtype")
    width, mlp = config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)
    layer = (_WIDTH * width + _MLP * mlp) * (3 if autocast else 4)
    if policy.config.gradient_checkpointing:
        layer = width * policy.model.dtype.itemsize
    activations = tokens * (layer * config.num_hidden_layers + config.vocab_size * _LOGITS)
    if autocast:
        activations += trained * 2
    return Estimate(weights + trained * 12, activations, disk)


def _size(size: int) -> str:
    """
    >>> _size(2_340_000), _size(15_100_000_000)
    ('2.3 MB', '15.1 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
