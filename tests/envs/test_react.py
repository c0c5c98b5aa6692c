import random
import time

import pytest

from stepagent.envs import react
from stepagent.envs.react import Prompt, PromptStyle, Reply, parse, render


@pytest.mark.parametrize(
    ("reply", "thought", "action"),
    [
        ("Thought: It is shut.\nAction: open door", "It is shut.", "open door"),
        ("open door", "", "open door"),
        ("  open door \n", "", "open door"),
        ("Action: open door", "", "open door"),
        ("It is shut.\nAction: open door", "It is shut.", "open door"),
        ("Thought: a\nThought: b\nAction: c", "a\nb", "c"),
        ("Thought: a\nAction: b\nThought: c\nAction: d", "a", "b"),
        ("Thought: a. Action: b", "a.", "b"),
        ("Thought 1: a Action 1: b", "a", "b"),
        ("Thought: a Action: b\nObservation: c\nThought: d\nAction: e", "a", "b"),
        ("Thought: a Action: b\nThought: c", "a", "b"),
        ("Thought: Missing in Action: x\nThought: c\nAction: d", "Missing in Action: x\nc", "d"),
        ("I go. Action: b", "I go.", "b"),
        (
            "search[Missing in Action 2: The Beginning]",
            "",
            "search[Missing in Action 2: The Beginning]",
        ),
        ("search[Missing in Action: x] Action: y", "search[Missing in Action: x]", "y"),
        ("finish Missing in Action 2: x", "", "finish Missing in Action 2: x"),
        ("Thought: two\nlines\nAction: b", "two\nlines", "b"),
        ("Thought: a\nAction: b\nI hope it works", "a", "b"),
        ("Thought: a\nAction: b\nObservation: c\nAction: d", "a", "b"),
        ("open door\nObservation: it opens", "", "open door"),
        ("Observation: x\nThought: a\nAction: b", "a", "b"),
        ("THOUGHT: a\nACTION: b", "a", "b"),
        ("thought : a\naction : b", "a", "b"),
        ("Thought 1: a\nAction 1: b", "a", "b"),
        ("**Thought:** a\n**Action:** b", "a", "b"),
        ("### Action:\n`open door`", "", "open door"),
        ("- Action: b", "", "b"),
        ("Thought: a\nAction:\n\n  b", "a", "b"),
        ("```\nThought: a\nAction: b\n```", "a", "b"),
        ("```text\nopen door\n```", "", "open door"),
        ('Action: "open door"', "", "open door"),
        ("Action: click['x']", "", "click['x']"),
        ("<think>a\nb</think>\nAction: c", "a\nb", "c"),
        ("<think>never closed", "never closed", ""),
        ("a\nb</think>\n\nAction: c", "a\nb", "c"),
        ("[THINK]a[/THINK]Thought: b\nAction: c", "a\nb", "c"),
        ("click[[THINK]]", "", "click[[THINK]]"),
        ("Action: b\n<think>c</think>\nAction: d", "", "b"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>"
            "Thought: b\nAction: c<|return|>",
            "a\nb",
            "c",
        ),
        ("Action: look Observation: x", "", "look"),
        ("look **Observation 2:** x", "", "look"),
        ("Thought: a Action: look Observation: x", "a", "look"),
        ("search[My Observation: a film]", "", "search[My Observation: a film]"),
        ("Thought: a\r\nAction: b\r\n", "a", "b"),
        ("Action: b<|im_end|>", "", "b"),
        ("Thought: a", "a", ""),
        ("Thought: a\nAction:", "a", ""),
        ("Action:\nAction: b", "", "b"),
        ("go north\nthen go south", "", "go north"),
        ("finish[yes: no]", "", "finish[yes: no]"),
        ("", "", ""),
        (" \n\t", "", ""),
    ],
)
def test_parse(reply, thought, action):
    assert parse(reply) == Reply(thought, action)


@pytest.mark.parametrize("style", [PromptStyle(), PromptStyle(thoughts=False)])
def test_parse_gives_back_what_render_wrote(style):
    film = "Missing in Action 2: The Beginning"
    for thought, action in [
        *(("", "a"), ("Why not.", "search[x: y]"), ("It's 3:00", "0"), ("", f"search[{film}]")),
        *((f"I look for {film}.", f"search[{film}]"), ("Action: is a film.", "finish[Action: a]")),
        ("I look for Missing in Action: it is a film.", "click[Missing in Action: x]"),
    ]:
        reply = parse(render(thought, action, style))
        assert reply.action == action
        assert reply.thought == (thought if style.thoughts else "")


@pytest.mark.parametrize(
    "unit",
    ["Action:", "Thought: a\n", "*", "> ", "<think>", "`", " ", "[", "_*", "1", " Action:", "\t"],
)
def test_parse_is_linear(unit):
    start = time.process_time()
    for head in ("", "act", "Thought: a Action", "- action 1"):
        parse(head + unit * (65_000 // len(unit)))
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("Thought: a\nAction: b\nObservation: c\nAction: d", "Thought: a\nAction: b"),
        ("Thought: a\nAction: b\nObservation 1: c", "Thought: a\nAction: b"),
        ("Thought: a\nAction: b\n**Observation:** c", "Thought: a\nAction: b"),
        ("Thought: a\nAction: b\nI hope it works", "Thought: a\nAction: b"),
        ("Thought: a\nAction: b\nThought: c\nAction: d", "Thought: a\nAction: b"),
        ("Action: look Observation: x", "Action: look"),
        ("Thought: a. Action: look OBSERVATION: x", "Thought: a. Action: look"),
        ("Observation: x\nThought: a\nAction: b", "Thought: a\nAction: b"),
        ("look\nObservation: x\nObservation: y", "look"),
        ("Thought: a\nObservation: x", "Thought: a"),
        ("Observation: x", ""),
        ("open door\nthen go", "open door"),
        ("<think>a</think>\nAction: b\n\nAnd now?", "<think>a</think>\nAction: b"),
        ("Observation: x\n<think>a</think>\nAction: b", "<think>a</think>Action: b"),
        ("```\nThought: a\nAction: b\n```\nObservation: x", "```\nThought: a\nAction: b\n```"),
        ("Action: **b** \r\nObservation: x", "Action: **b**"),
        ("Action: b<|im_end|>\n<|im_start|>user\nx", "Action: b"),
        ("Thought: a", "Thought: a"),
        (" \n", ""),
    ],
)
def test_cut_keeps_what_parse_used(reply, kept):
    assert react.cut(reply) == kept
    assert parse(kept) == parse(reply)


def test_what_cut_keeps_is_read_alike_and_not_cut_again():
    draw = random.Random(0)
    pieces = [
        *("Thought: ", "Action: ", "Observation: ", "Action 2: ", "**Observation 1:** ", "\n", " "),
        *("<think>", "</think>", "```", "```\n", "<|im_end|>", "look", "go to desk 1", "search[a"),
        *("]", "\r\n", "`", "> ", "<|channel|>final<|message|>", "[THINK]", "I see. ", "**", "\t"),
    ]
    for _ in range(20_000):
        reply = "".join(draw.choices(pieces, k=draw.randint(1, 12)))
        kept = react.cut(reply)
        assert parse(kept).action == parse(reply).action, repr(reply)
        assert react.cut(kept) == kept, repr(reply)
        assert len(kept) <= len(reply), repr(reply)


def _prompt(tmp_path, text):
    path = tmp_path / "prompt.md"
    path.write_text(text)
    return Prompt.load(path)


def test_prompt_file(tmp_path):
    prompt = _prompt(
        tmp_path,
        "# Instruction\nDo it.\n\n# Example\nObservation: o1\nmore\nThought: t1\nAction: a1\n"
        "Observation: o2\nThought: t2\nAction: a2\n",
    )
    assert prompt.example == (("o1\nmore", "t1", "a1"), ("o2", "t2", "a2"))
    system = prompt.system()
    assert "Do it." in system
    assert "Thought: t2\nAction: a2" in system
    bare = prompt.system(PromptStyle(thoughts=False))
    assert "t1" not in bare
    assert "Observation: o2\na2" in bare
    assert prompt.system(PromptStyle(instruction=False, example=False)) == ""
    assert prompt.checksum() != prompt.checksum(PromptStyle(thoughts=False))
    messages = react.opening(prompt, "look", PromptStyle(instruction=False, example=False))
    assert messages == [{"role": "user", "content": "look"}]


@pytest.mark.parametrize(
    "text", ["", "# Instruction\nx", "# Instruction\nx\n# Example\nThought: a\nAction: b\n"]
)
def test_broken_prompt_files_say_so(tmp_path, text):
    with pytest.raises(ValueError, match=r"prompt\.md"):
        _prompt(tmp_path, text)
