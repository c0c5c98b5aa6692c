"""The model card of a pre-trained model: what it is, what it has read, what it can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepagent.training.config import TinyConfig
from stepagent.training.pretrain.optimise import Optimiser


def model_card(
    shape: TinyConfig,
    optimiser: Optimiser,
    results: Mapping[str, Any],
) -> str:
    """Markdown with the front matter that model hubs read."""
    rows = [
        f"| {name} | {row['characters']:.1f} | {row['accuracy']:.3f} | {row['loss']:.3f} |"
        for name, row in results["sources"].items()
    ]
    copying = ", ".join(f"{share:.3f} of {n}" for n, share in results["copying"].items())
    return f"""---
license: apache-2.0
library_name: transformers
tags: [stepagent, text-environments]
---

# A small language model that has read text environments

A Llama of {results["weights"] / 1e6:.1f} M weights (width {shape.hidden_size},
{shape.layers} layers, {shape.heads} heads, {shape.vocabulary} byte-pair tokens, context
{shape.context}), pre-trained from scratch by StepAgent on what its environments say:
{results["tokens_seen"] / 1e6:.1f} M tokens in {results["updates"]:,} updates. It is a starting
point for training agents on two CPU cores: it knows no facts and follows no instructions.

**Data.** Episodes of an agent that draws from the admissible actions, on train tasks only, and the
pages of the bundled encyclopedia. No action of an expert is in them. The tokens of actions are
learned as well as those of observations.

| source | million characters | next-observation accuracy | loss (nats per token) |
|---|---|---|---|
{chr(10).join(rows)}

Accuracy and loss are over tokens of observations behind the first action (of pages: over all), in
walks that were held back. Copying: behind a row of random tokens that begins again it repeats
{copying} tokens.

**Training.** AdamW, peak learning rate {optimiser.learning_rate}, cosine to a tenth, sequences of
{optimiser.sequence} tokens, {optimiser.batch_size} per update.
`stepagent pretrain --config nano` makes it again; `config.yaml` has every setting.
"""
