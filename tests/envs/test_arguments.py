"""Arguments come from files, command lines and clients: a wrong type is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from stepagent import envs
from stepagent.envs.arguments import check
from tests.toy_env import ToyEnv

WRONG = {
    "stepagent/ALFWorld-v0": [{"tasks": [[]]}, {"engine": 1}, {"data": 5}, {"expert": None}],
    "stepagent/Mind2Web-v0": [
        *({"top_k": value} for value in (math.nan, math.inf, True, 1.5, "5", 10**4000)),
        {"budget": True},
        {"ranker": 3},
        {"ranker_args": []},
        {"password": 1},
    ],
    "stepagent/ScienceWorld-v0": [{"timeout": value} for value in (math.nan, math.inf, True, "1")],
    "stepagent/WebShop-v0": [{"show_attributes": "false"}, {"goal_seed": 1.5}, {"goal_seed": True}],
    "stepagent/HotpotQA-v0": [
        {"lookup": "false"},
        {"lookup": 1},
        {"sentences": 2.5},
        {"sizes": [1, 2, None]},
        {"sizes": 4},
        {"corpus": 5},
    ],
}


@pytest.mark.parametrize(
    ("env_id", "arguments"), [(env_id, one) for env_id, many in WRONG.items() for one in many]
)
def test_a_value_of_another_type_is_refused_by_name(env_id, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name} is .*: its type must be ") as raised:
        envs.make(env_id, **arguments)
    assert len(str(raised.value)) < 300


class _Annotated(ToyEnv):
    def __init__(self, *, count: int = 1, unknown: Elsewhere = None, **others):  # type: ignore[name-defined]  # noqa: F821
        super().__init__(**others)


class _Known(ToyEnv):
    def __init__(
        self,
        *,
        count: int = 1,
        none: int = None,  # type: ignore[assignment]  # noqa: RUF013  (as many write it)
        rate: float = 1.0,
        kind: Literal["a", "b"] = "a",
        names: str | Iterable[str] | None = None,
        sizes: Sequence[int] = (),
        pair: tuple[int, ...] = (1, 2),
        table: Mapping[str, Any] | None = None,
        path: str = "",
        anything=None,
        **others,
    ):
        super().__init__(**others)


def test_right_values_pass():
    for arguments in (
        {"count": 2**63 - 1, "rate": 1, "kind": "b", "names": "x", "pair": [3], "table": {"a": 1}},
        {"none": None, "names": ["x", "y"], "sizes": (1, 2), "table": None, "path": Path("x")},
        {"anything": math.nan, "split": "dev", "max_steps": 3},
    ):
        check(_Known, arguments)
        _Known(**arguments)


def test_wrong_values_do_not():
    for name, value in (
        ("count", 2**63),
        ("count", None),
        ("rate", -math.inf),
        ("kind", "c"),
        ("names", [1]),
        ("sizes", "12"),
        ("pair", {}),
        ("table", []),
        ("path", 1),
        ("max_steps", "9"),  # of the base class
    ):
        with pytest.raises(ValueError, match=name):
            _Known(**{name: value})


def test_a_constructor_whose_types_only_a_checker_knows_is_left_alone():
    _Annotated(count="many")
    with pytest.raises(ValueError, match="split"):
        _Annotated(split=3)
