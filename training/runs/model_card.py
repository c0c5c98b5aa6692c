"""A run's final policy on the Hugging Face hub, with a card that is made from the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from stepagent.errors import UserError
from stepagent.files import write_text


class PushFailed(UserError, RuntimeError):
    """The hub has not taken the policy, which is still in the run's directory."""


def card(summary: dict[str, Any], base: str) -> str:
    """The model card of a run that has this `summary.json`; `base` is the model it started from."""
    header = {
        "library_name": "peft" if summary.get("adapter") else "transformers",
        "tags": ["stepagent", summary["method"], "agent"],
    }
    if base.count("/") == 1 and not Path(base).exists():
        header["base_model"] = base
    rows = [
        f"| {name} | {score['reward_mean']:.3f} | {low:.3f} to {high:.3f} | "
        f"{score['success_rate']:.0%} | {score['episodes']} |"
        for name, score in summary["scores"].items()
        for low, high in [score["reward_ci95"]]
    ]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(header, sort_keys=False).strip(),
            "---",
            "",
            f"# {summary['method']} on {summary['env']}",
            "",
            f"A policy that StepAgent has trained from {base}, on "
            f"{summary['expert_trajectories']} expert trajectories of `{summary['env']}`, seed "
            f"{summary['seed']}.",
            "",
            "| policy | score | 95 % interval | success | episodes |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Scores are those of unseen tasks. All options of the run are in `config.yaml`.",
            "",
        ]
    )


def push(repository: str, folder: Path, text: str) -> None:
    """Uploads a policy's folder to a (private) repository of the hub, with this card.

    Raises PushFailed, with what the hub has answered.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    write_text(folder / "README.md", text)
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="StepAgent")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise PushFailed(
            f"{repository} was not pushed ({str(error).splitlines()[0]}): the policy is in "
            f"{folder}; log in with `hf auth login` and run the same command again"
        ) from error
