"""The agents without a model: expert, random, human, and `make_agent`."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest

from stepagent.agents import SPECS, make_agent
from stepagent.agents.expert import ExpertAgent
from stepagent.agents.human import HumanAgent
from stepagent.agents.random import RandomAgent
from stepagent.envs.react import parse
from tests.agents.conversations import say, turn
from tests.agents.count_env import CountEnv


def test_importing_agents_is_light():
    heavy = "{'torch', 'transformers', 'requests', 'peft', 'scienceworld', 'py4j'}"
    code = f"import sys, agents; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("spec", ["nobody", "", "hf", "hf:", "openai:", "expert:x", "smollm2:x"])
def test_unknown_agents_list_what_exists(spec: str):
    with pytest.raises(ValueError) as error:
        make_agent(spec)
    assert all(name in str(error.value) for name in SPECS)


@pytest.mark.parametrize("spec", ["expert", "random", "human", "openai:m", "hf:nowhere"])
def test_unknown_options_list_what_exists(spec: str):
    with pytest.raises(ValueError, match=r"no option colour: it takes .*thoughts"):
        make_agent(spec, colour=1)


def test_a_model_that_does_not_exist():
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"no model at .*nowhere"):
        make_agent("hf:nowhere")


def test_style_comes_from_the_options():
    agent = make_agent("expert", example=False, thoughts=False)
    assert (agent.style.instruction, agent.style.example, agent.style.thoughts) == (1, 0, 0)


# Expert -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("thoughts", [True, False])
def test_expert_solves_its_task(count_env: CountEnv, thoughts: bool):
    agent, talk = ExpertAgent(thoughts=thoughts), say("Begin.")
    for number in range(4):
        (reply,) = agent.act([turn("a", talk, count_env)])
        assert reply.startswith("Thought: ") == thoughts
        observation, _, done, _, info = count_env.step(reply)
        talk += [{"role": "assistant", "content": reply}, {"role": "user", "content": observation}]
        assert done == (number == 3)
    assert info["score"] == 1.0
    assert count_env.plans == 1  # asked for once an episode
    agent.forget("a")
    agent.act([turn("a", say("Begin."), count_env)])
    assert count_env.plans == 2


@pytest.mark.parametrize("thoughts", [True, False])
def test_expert_without_a_plan_left_does_nothing(count_env: CountEnv, thoughts: bool):
    agent = ExpertAgent(thoughts=thoughts)
    talk = say(*["x"] * 9)
    (reply,) = agent.act([turn("a", talk, count_env)])
    assert parse(reply).action == ""
    assert count_env.step(reply)[4]["valid"] is False
    assert agent.statistics() == {"plans_used_up": 1}
    agent.act([turn("a", talk, count_env)])
    agent.forget("a")
    assert agent.statistics() == {"plans_used_up": 1}


# Random -----------------------------------------------------------------------------------------


def test_random_depends_on_seed_and_turn_alone(count_env: CountEnv):
    talks = [say(*["x"] * (2 * n + 1)) for n in range(30)]

    def draw(agent: RandomAgent, seed: int) -> list[str]:
        return [parse(agent.act([turn("k", t, count_env, seed)])[0]).action for t in talks]

    first = draw(RandomAgent(), 1)
    together = RandomAgent().act([turn(i, t, count_env, 1) for i, t in enumerate(reversed(talks))])
    assert first == [parse(reply).action for reply in reversed(together)]
    assert first != draw(RandomAgent(), 2)
    assert set(first) == set(count_env.admissible_actions())


def test_random_needs_a_list(count_env: CountEnv, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CountEnv, "admissible_actions", lambda self: [])
    assert RandomAgent().act([turn("k", say("x"), count_env)]) == [""]
    monkeypatch.delattr(CountEnv, "admissible_actions")
    with pytest.raises(ValueError, match="CountEnv does not list"):
        RandomAgent().act([turn("k", say("x"), count_env)])


# Human ------------------------------------------------------------------------------------------


def human(text: str) -> tuple[HumanAgent, io.StringIO]:
    shown = io.StringIO()
    return HumanAgent(input=io.StringIO(text), output=shown), shown


def test_human_sees_the_observation_and_is_heard(count_env: CountEnv):
    agent, shown = human("\n? t\none\nThought: hm\n")
    messages = say("A [red]door[/red] is here.")
    assert agent.act([turn("k", messages, count_env)]) == ["one"]
    text = shown.getvalue()
    assert "A [red]door[/red] is here." in text  # nothing in it is markup
    assert "Count, please" in text
    assert "two" in text
    assert "four" not in text
    longer = [*messages, *say("-", "one", "Right.")[1:]]
    assert agent.act([turn("k", longer, count_env)]) == ["Thought: hm"]
    assert shown.getvalue().count("Count, please") == 1


@pytest.mark.parametrize("text", ["quit\n", "QUIT\n", ""])
def test_human_can_leave(count_env: CountEnv, text: str):
    with pytest.raises(KeyboardInterrupt):
        human(text)[0].act([turn("k", say("x"), count_env)])


def test_human_over_a_pipe(count_env: CountEnv, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\n"))
    assert make_agent("human").act([turn("k", say("Begin."), count_env)]) == ["two"]
    assert "Begin." in capsys.readouterr().out
