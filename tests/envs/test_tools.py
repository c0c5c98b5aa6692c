"""Actions as functions: each environment's, in every reply, near and far; broken calls."""

import json

import gymnasium as gym
import pytest

from stepagent import envs
from stepagent.envs import check, react
from stepagent.envs.react import Prompt, PromptStyle, parse, render
from stepagent.envs.tools import ACT, BadCall, Tool, action_of, call_of, write_call
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.envs.wrappers import MessagesWrapper
from tests.envs.guess import GuessEnv

GUESS = "tests.envs.guess:tests/Guess-v0"
TOOLS_STYLE = PromptStyle(format="tools")
TOOLS = (
    Tool("wait", "Waits.", "wait"),
    Tool("go", "Goes.", "go to {room}"),
    Tool("press", "Presses.", "[{n}]", {"n": {"type": "integer"}}, also=("press {n}",)),
    Tool("pick", "Picks.", "{letter}.", {"letter": {"enum": ["A", "B"]}}),
)


def test_an_action_is_a_call_and_a_call_an_action():
    for action, call in [
        ("wait", {"name": "wait", "arguments": {}}),
        ("go to the old hall", {"name": "go", "arguments": {"room": "the old hall"}}),
        ("go to Zürich “🔥”", {"name": "go", "arguments": {"room": "Zürich “🔥”"}}),
        ("[12]", {"name": "press", "arguments": {"n": 12}}),
        ("B.", {"name": "pick", "arguments": {"letter": "B"}}),
    ]:
        text = call_of(TOOLS, action)
        assert text == f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
        assert action_of(TOOLS, text) == action
    assert json.loads(call_of(TOOLS, "press 3").split("\n")[1])["arguments"] == {"n": 3}
    assert call_of(TOOLS, "[x]") is None
    assert call_of(TOOLS, "C.") is None
    assert call_of((ACT,), "anything [at] all") == write_call(
        "act", {"action": "anything [at] all"}
    )


def test_the_schema_is_what_servers_and_templates_take():
    assert TOOLS[2].schema() == {
        "type": "function",
        "function": {
            "name": "press",
            "description": "Presses.",
            "parameters": {
                "type": "object",
                "properties": {"n": {"type": "integer"}},
                "required": ["n"],
            },
        },
    }


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("{", "not valid JSON"),
        ('{"name": "go", "arguments": {"room": "x"', "not valid JSON"),
        ('{"name": "go", "arguments": "{broken"}', "not valid JSON"),
        ("[1]", "keys name and arguments"),
        ('{"arguments": {}}', "keys name and arguments"),
        ('{"name": 3, "arguments": {}}', "keys name and arguments"),
        ('{"name": "fly", "arguments": {}}', "no function 'fly'"),
        ('{"name": "go", "arguments": {}}', "go(room) lacks room"),
        ('{"name": "go", "arguments": {"room": null}}', "go(room) lacks room"),
        ('{"name": "go", "arguments": {"room": "x", "y": 1}}', "has no argument y"),
        ('{"name": "go", "arguments": {"room": ["x"]}}', "room must be a string"),
        ('{"name": "go", "arguments": [1]}', "must be a JSON object"),
        ('{"name": "press", "arguments": {"n": "x"}}', "n must be an integer"),
        ('{"name": "pick", "arguments": {"letter": "Z"}}', "must be one of A, B"),
        ("[" * 20_000, ""),
    ],
)
def test_a_broken_call_says_what_is_wrong_and_what_there_is(call, what):
    with pytest.raises(BadCall) as error:
        action_of(TOOLS, f"<tool_call>{call}</tool_call>")
    assert what in str(error.value)
    assert "The functions are: wait(), go(room), press(n), pick(letter)." in str(error.value)


def test_lenient_where_the_meaning_is_clear():
    for arguments in ('"{\\"n\\": 4}"', '{"n": "4"}', '{"n": 4}'):
        call = f'<tool_call>{{"name": "press", "arguments": {arguments}}}</tool_call>'
        assert action_of(TOOLS, call) == "[4]"
    assert action_of(TOOLS, '{"name": "wait"}') == "wait"
    assert action_of(TOOLS, '{"name": "go", "parameters": {"room": "a\\nb"}}') == "go to a b"


@pytest.mark.parametrize(
    ("reply", "thought", "action", "kept"),
    [
        ("<tool_call>\n{}\n</tool_call>", "", "<tool_call>{}</tool_call>", None),
        ("I go.\n<tool_call>{}</tool_call>", "I go.", "<tool_call>{}</tool_call>", None),
        ("Thought: I go.\n<tool_call>{}", "I go.", "<tool_call>{}</tool_call>", None),
        (
            "<think>a</think>\n<tool_call>{}</tool_call>\n<tool_call>[]</tool_call>",
            "a",
            "<tool_call>{}</tool_call>",
            "<think>a</think>\n<tool_call>{}</tool_call>",
        ),
        ("Action: look\n<tool_call>{}</tool_call>", "", "look", "Action: look"),
        ("Action: <tool_call>{}</tool_call>", "", "<tool_call>{}</tool_call>", None),
        ("<tool_call>{\n broken", "", "<tool_call>{ broken</tool_call>", None),
    ],
)
def test_a_call_in_a_reply(reply, thought, action, kept):
    parsed = parse(reply)
    assert (parsed.thought, parsed.action) == (thought, action)
    assert parsed.text == (kept or reply)
    assert parse(parsed.text) == parsed


def test_the_format_is_a_part_of_the_prompt():
    prompt = Prompt("Do it.", (("You see a door.", "I go.", "go to hall"),), tools=TOOLS)
    system = prompt.system(TOOLS_STYLE)
    assert 'I go.\n<tool_call>\n{"name": "go", "arguments": {"room": "hall"}}' in system
    assert "Action:" not in system
    assert prompt.checksum(TOOLS_STYLE) != prompt.checksum()
    fewer = Prompt(prompt.instruction, prompt.example, tools=TOOLS[:3])
    assert fewer.checksum(TOOLS_STYLE) != prompt.checksum(TOOLS_STYLE)
    assert fewer.checksum() == prompt.checksum()
    with pytest.raises(ValueError, match="unknown format 'xml'"):
        PromptStyle(format="xml")
    assert render("", "no such action", TOOLS_STYLE, TOOLS) == "Action: no such action"


def test_a_step_is_recorded_as_the_action_and_trains_in_either_format():
    reply = render("I go.", "go to hall", TOOLS_STYLE, TOOLS)
    step = Step.of("o", reply, TOOLS_STYLE, TOOLS)
    assert (step.thought, step.action, step.reply) == ("I go.", "go to hall", "")
    other = Step.of("o", f"{reply}\nAnd now?", TOOLS_STYLE, TOOLS)
    assert (other.action, other.text(TOOLS_STYLE, TOOLS)) == ("go to hall", reply)
    odd = Step.of("o", reply.replace(", ", ",  "), TOOLS_STYLE, TOOLS)
    assert odd.text(TOOLS_STYLE, TOOLS) == odd.reply != ""
    broken = Step.of("o", "<tool_call>{", TOOLS_STYLE, TOOLS)
    assert broken.text(TOOLS_STYLE, TOOLS) == "<tool_call>{"
    of_react = Step.of("o", "Thought: I go.\nAction:  go to hall", PromptStyle(), TOOLS)
    unasked = Step.of("o", reply, PromptStyle(), TOOLS)
    assert unasked.text(PromptStyle(), TOOLS) == reply  # a model that calls where it should write
    prompt = Prompt("Do it.", (("a", "b", "wait"),), tools=TOOLS)

    def last(step, style, **fingerprint):
        trajectory = Trajectory("E", "t", "test", "A", 0, (step,), fingerprint=fingerprint)
        return trajectory.messages(prompt, style)[-1]["content"]

    for called in (step, odd):
        assert last(called, PromptStyle(), format="tools") == "Thought: I go.\nAction: go to hall"
    assert last(odd, TOOLS_STYLE, format="tools") == odd.reply
    assert last(of_react, TOOLS_STYLE) == reply
    assert last(of_react, PromptStyle()) == "Thought: I go.\nAction:  go to hall"
    assert last(unasked, PromptStyle()) == reply


@pytest.mark.parametrize(
    ("env_id", "arguments"),
    [
        (GUESS, {}),
        ("stepagent/ALFWorld-v0", {"wording": "old"}),
        ("stepagent/HotpotQA-v0", {"lookup": True}),
        ("stepagent/2WikiMultihopQA-v0", {}),
        ("stepagent/MuSiQue-v0", {}),
        ("stepagent/Mind2Web-v0", {"answers": "choice"}),
    ],
)
def test_the_functions_stand_for_the_actions_in_other_settings_too(env_id, arguments):
    check.check_tools(lambda **more: envs.make(env_id, **{**arguments, **more}))


class Unable(GuessEnv):
    """Its functions do not stand for all actions."""

    tools = (Tool("one", "Says one.", "1"), Tool("two", "Says two.", "2"))


def test_functions_that_leave_actions_out_are_noticed():
    with pytest.raises(AssertionError, match="no function stands for"):
        check.check_tools(lambda **more: Unable(**{"split": "train", **more}))


def test_a_broken_call_costs_a_step_and_raises_nothing():
    env = gym.make("stepagent/ALFWorld-v0", split="dev", max_steps=3)
    env.reset(seed=0)
    for call in ("{", '{"name": "fly"}', '{"name": "take", "arguments": {"object": "mug 1"}}'):
        text, reward, _, truncated, info = env.step(f"Hm.\n<tool_call>{call}</tool_call>")
        assert "The functions are: look(), inventory(), go_to(receptacle)" in text
        assert (reward, info["valid"]) == (0, False)
    assert truncated
    env.close()


def test_conversations_with_calls():
    env = MessagesWrapper(gym.make(GUESS, split="train"), TOOLS_STYLE)
    messages, _ = env.reset(seed=0)
    messages, *_ = env.step(write_call("act", {"action": "x"}))
    assert messages[-2]["content"] == write_call("act", {"action": "x"})
    assert react.parse(messages[-2]["content"]).action.startswith("<tool_call>")
