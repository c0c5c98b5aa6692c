"""Pre-trains a small language model on environment text: `stepagent pretrain --config nano`.

The output directory holds `corpus/` (the documents), `tokenizer/`, `tokens.npy`, `checkpoint/` (the
newest state), `metrics.jsonl` and `model/` (the finished model with its card). The same command
resumes wherever it was stopped; with `--install` the finished model becomes the package's `nano`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from stepagent.agents import nano
from stepagent.command_line import Command
from stepagent.errors import check_range
from stepagent.files import open_file, read_text
from stepagent.training.config import TinyConfig
from stepagent.training.pretrain.optimise import Optimiser


@dataclass
class Config:
    """Pre-trains a small language model on the environments' texts."""

    output: str
    """Directory for the corpus, the checkpoints and the model. Running it again resumes."""
    sources: dict[str, float] = field(default_factory=dict)
    """Environments whose texts are collected, by random walks: id → amount, in millions of
    characters."""
    shape: TinyConfig = field(default_factory=TinyConfig)
    """Shape of the model."""
    optimiser: Optimiser = field(default_factory=Optimiser)
    """The training."""
    seed: int = 0
    """Seed of the walks, the initial weights and the order of the corpus."""
    threads: int = 0
    """CPU threads; 0: as many as there are cores."""
    install: bool = False
    """Copy the finished model into the package, where `--policy.model nano` finds it. If `output`
    already holds a finished model, nothing else is done."""


def pretrain(config: Config, console: Console) -> Path:
    """Makes the model; returns its folder. Raises ValueError, OSError."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    from stepagent.files import Lock, write_atomically
    from stepagent.training.pretrain import measure
    from stepagent.training.pretrain.card import model_card
    from stepagent.training.pretrain.corpus import collect
    from stepagent.training.pretrain.induction import ROPE_THETA, start_with_induction
    from stepagent.training.pretrain.optimise import train
    from stepagent.training.pretrain.tokens import make_tokenizer, write_tokens
    from stepagent.training.tiny import build_model

    if not config.sources:
        raise ValueError("sources is empty: name environments to walk through, or --config nano")
    check_range(0, seed=config.seed, threads=config.threads)
    check_range(1, **asdict(config.shape))
    check_range(2, layers=config.shape.layers, heads=config.shape.heads)  # induction heads
    config.optimiser.check()
    folder = Path(config.output)
    if config.threads:
        torch.set_num_threads(config.threads)
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder / ".lock"):
        _same_config(config)

        def collected(name: str, size: float, total: float) -> None:
            console.print(f"{name}: {size:.2f} of {total} million characters", end="\r")

        parts = collect(config.sources, folder / "corpus", config.seed, collected)
        console.print()
        row = folder / "tokens.npy"
        if not (folder / "tokenizer").is_dir():
            fresh = make_tokenizer(parts, config.shape)
            write_atomically(folder / "tokenizer", fresh.save_pretrained)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer")
        # The last part of each environment is held back; pages have one part, which is learned.
        held_back = {name: files[-1] for name, files in parts.items()}
        learned = [f for name, files in parts.items() for f in (files[:-1] or files)]
        if not row.is_file():
            write_tokens(row, learned, tokenizer, config.seed)
        tokens = np.load(row, mmap_mode="r")
        model = build_model(config.shape, tokenizer, config.seed, rope_theta=ROPE_THETA)
        start_with_induction(model, config.seed)
        weights = sum(p.numel() for p in model.parameters())
        console.print(
            f"{len(tokens) / 1e6:.1f} M tokens, {weights / 1e6:.1f} M weights, "
            f"{config.optimiser.updates:,} updates"
        )
        log = open_file(folder / "metrics.jsonl", "a")

        def updated(done: int, figures: dict[str, float]) -> None:
            if done % 10 == 0 or done == config.optimiser.updates:
                log.write(json.dumps({"update": done, **figures}) + "\n")
                log.flush()
                console.print(
                    f"update {done:,} of {config.optimiser.updates:,}: loss {figures['loss']:.3f}, "
                    f"{figures['tokens_per_second']:,.0f} tokens/s"
                )

        with log:
            train(model, tokens, config.optimiser, folder, updated)
        results: dict[str, Any] = {
            "weights": weights,
            "tokens_seen": config.optimiser.updates
            * config.optimiser.batch_size
            * config.optimiser.sequence,
            "updates": config.optimiser.updates,
            "copying": measure.copying_accuracy(model),
            "sources": {
                name: {
                    "characters": sum(f.stat().st_size for f in parts[name]) / 1e6,
                    **measure.observation_accuracy(model, tokenizer, part),
                }
                for name, part in held_back.items()
            },
        }

        def save(partial: Path) -> None:
            model.half().save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            card = model_card(config.shape, config.optimiser, results)
            (partial / "README.md").write_text(card)
            (partial / "results.json").write_text(json.dumps(results, indent=1))
            (partial / "config.yaml").write_text(_settings(replace(config, output="nano")))

        write_atomically(folder / "model", save)
    console.print(f"the model is in {folder / 'model'}", markup=False)
    return folder / "model"


def _same_config(config: Config) -> None:
    """Raises ValueError where the folder holds another pre-training; keeps the configuration."""
    from stepagent.files import write_text

    path, text = Path(config.output) / "config.yaml", _settings(config)
    here = {"output": config.output}  # which may be written in another way
    if path.is_file() and yaml.safe_load(read_text(path)) | here != yaml.safe_load(text):
        raise ValueError(f"{path} is of another pre-training: choose another output, or delete it")
    write_text(path, text)


def _settings(config: Config) -> str:
    """As YAML, what the model depends on."""
    settings = asdict(config)
    del settings["install"]
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def run(config: Config) -> int:
    console, model = Console(highlight=False), Path(config.output) / "model"
    if not (config.install and model.is_dir()):
        pretrain(config, console)
    if config.install:
        where = nano.install(model)
        console.print(f"nano {nano.digest()} is installed in {where}", markup=False)
    return 0


main = Command("pretrain", Config, run, resumes=True, configs="stepagent.training")
