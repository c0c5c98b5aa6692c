"""Environments of the libraries we plug into: `python -m tests.integrations.environments`.

Each library has its own virtual environment, in the folder that
STEPAGENT_INTEGRATIONS names (`build/integrations` without it).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("STEPAGENT_INTEGRATIONS") or ROOT / "build/integrations")
REQUIREMENTS = {
    "openenv": ["openenv==0.10.0"],
    "verifiers": ["verifiers[openenv]==0.4.0", "uv", "-e", "integrations/verifiers"],
    "inspect": ["inspect-ai==0.3.285", "openai"],
}
"""Library → what its environment holds beside StepAgent: the versions that are supported."""


def binary(library: str, name: str) -> Path:
    """A program of a library's environment."""
    return FOLDER / library / "bin" / name


def main() -> None:
    for library, requirements in REQUIREMENTS.items():
        if not binary(library, "python").exists():
            subprocess.run([sys.executable, "-m", "venv", FOLDER / library], check=True)
        python = binary(library, "python")
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "-e", ROOT, *requirements], check=True, cwd=ROOT)
        subprocess.run([*install, "--no-deps", "alfworld==0.4.2"], check=True)  # room layouts only
        print(f"{library}: {python}")


if __name__ == "__main__":
    main()
