"""The JSON schema says what the reader takes."""

import json
from dataclasses import asdict

import pytest

from stepagent.envs import schema
from stepagent.envs.trajectory import Step, Trajectory

ONE = asdict(
    Trajectory(
        env="tests/Guess-v0",
        task_id="small/1",
        split="train",
        agent="expert",
        seed=3,
        steps=(Step("o", "t", "a", 1.0),),
        reward=1.0,
        metrics={"em": 1.0},
        fingerprint={"data": "x"},
    )
)
TYPES = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": int | float,
    "array": list,
    "object": dict,
}


def fits(value: object, rule: dict, root: dict) -> bool:
    """As much of JSON Schema as the file uses."""
    rule = root["$defs"][rule["$ref"].rsplit("/", 1)[1]] if "$ref" in rule else rule
    if "const" in rule:
        return value == rule["const"]
    if not isinstance(value, TYPES[rule["type"]]):
        return False
    if isinstance(value, list):
        return all(fits(item, rule["items"], root) for item in value)
    if not isinstance(value, dict):
        return True
    properties, more = rule.get("properties", {}), rule["additionalProperties"]
    return all(name in value for name in rule.get("required", ())) and all(
        fits(item, properties[name], root)
        if name in properties
        else bool(more) and fits(item, more, root)
        for name, item in value.items()
    )


def read(line: dict) -> bool:
    try:
        Trajectory.from_json(json.dumps(line))
    except ValueError:
        return False
    return True


def test_the_file_is_what_the_dataclasses_give():
    assert schema.FILE.read_text(encoding="utf-8") == schema.text(), "run: python -m envs.schema"


WRONG = [None, "x", 3, 2.5, [], {}, {"a": "x"}, {"a": 1.0}, [3]]


@pytest.mark.parametrize("name", sorted(ONE))
def test_schema_and_reader_agree_on_every_field(name):
    rules = json.loads(schema.FILE.read_text(encoding="utf-8"))
    assert read(ONE)
    assert fits(json.loads(json.dumps(ONE)), rules, rules)
    lines = [{**ONE, name: value} for value in WRONG]
    lines.append({key: value for key, value in ONE.items() if key != name})
    for line in lines:
        line = json.loads(json.dumps(line))
        assert read(line) == fits(line, rules, rules), line.get(name, "missing")


@pytest.mark.parametrize("name", sorted(ONE["steps"][0]))
def test_schema_and_reader_agree_on_every_field_of_a_step(name):
    rules = json.loads(schema.FILE.read_text(encoding="utf-8"))
    step = ONE["steps"][0]
    # JSON Schema cannot say that the first step shares no token with one before it.
    wrong = [value for value in WRONG if (name, value) != ("prompt_tokens", [3])]
    steps = [{**step, name: value} for value in wrong]
    steps.append({key: value for key, value in step.items() if key != name})
    for changed in (*steps, {**step, "more": 1}):
        line = json.loads(json.dumps({**ONE, "steps": [changed]}))
        assert read(line) == fits(line, rules, rules), changed
