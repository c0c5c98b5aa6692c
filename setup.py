"""The folders of the checkout, such as `envs`, are the packages `stepagent.envs` and so on."""

from setuptools import find_namespace_packages, setup

FOLDERS = ("envs", "agents", "eval", "training")

setup(
    package_dir={"stepagent": "stepagent", **{f"stepagent.{name}": name for name in FOLDERS}},
    # Namespace packages are those of data, such as training/configs: setuptools wants them named.
    packages=["stepagent"]
    + [
        f"stepagent.{name}"
        for name in find_namespace_packages(
            include=[pattern for name in FOLDERS for pattern in (name, f"{name}.*")],
            exclude=["*__pycache__*"],
        )
    ],
)
