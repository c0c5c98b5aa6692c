"""The folders of the checkout, such as `envs`, are the packages `stepagent.envs` and so on."""

from setuptools import find_packages, setup

FOLDERS = ("envs", "agents", "eval", "training")

setup(
    package_dir={"stepagent": "stepagent", **{f"stepagent.{name}": name for name in FOLDERS}},
    packages=["stepagent"]
    + [f"stepagent.{name}" for name in find_packages(include=[f"{f}*" for f in FOLDERS])],
)
