"""Every family's template: what a model is shown, what it learns, and what history becomes."""

from __future__ import annotations

import pytest

from stepagent.agents.chat import ChatCodec
from tests.agents.conversations import say
from tests.agents.families import FAMILIES, PAGE, Family, as_written, shown, table

PLAIN = ("You see a door.", "Thought: I go.\nAction: go", "A hall.\n\nIt is  open", "Action: look")
THINKING = (
    "You see a door.",
    "<think>\nA door, so I go.\n</think>\n\nAction: go",
    "A hall.",
    "<think>\nHm.\n</think>\n\nThought: I look.\nAction: look",
    "A wall.",
    "<think>\nStuck\nhere\n</think>\n\nAction: wait",
)
SYSTEM = "Be brief.\n\nHere is one task."
by_name = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@by_name
@pytest.mark.parametrize("system", ["", SYSTEM])
@pytest.mark.parametrize("texts", [PLAIN, THINKING], ids=["plain", "thinking"])
def test_states_are_what_the_template_shows(family: Family, system: str, texts: tuple[str, ...]):
    tokenizer = family.tokenizer()
    codec = ChatCodec(tokenizer, family.arguments)
    messages = say(*as_written(family, *texts), system=system)
    encoded = codec.encode(messages)
    first = 1 + bool(system)
    assert len(encoded.replies) == len(texts) // 2
    for step, (start, end) in enumerate(encoded.replies):
        so_far = messages[: first + 2 * step]
        state = shown(family, tokenizer, so_far)
        assert codec.prompt(so_far) == state, "as it is shown in acting"
        assert encoded.state(step) == state, "as it is learned from"
        if family.bos:
            assert state[0] == tokenizer.bos_token_id != state[1], "one beginning"
        end_id = tokenizer.convert_tokens_to_ids(family.end)
        assert encoded.ids[end - 1] == codec.end_of_turn_id == end_id, "the turn's end is learned"
        assert encoded.path(end) == state + encoded.ids[start:end]


@by_name
@pytest.mark.parametrize("texts", [PLAIN, THINKING], ids=["plain", "thinking"])
def test_a_reply_reads_as_it_was_written(family: Family, texts: tuple[str, ...]):
    """What is decoded from a reply's tokens is the reply, and is encoded as the same tokens."""
    codec = ChatCodec(family.tokenizer(), family.arguments)
    for reply in as_written(family, *texts[1::2]):
        ids = codec.reply_ids(reply)
        text = codec.decode(ids[:-1]).strip()
        answer = reply.rpartition("</think>")[2].strip()
        assert text.rpartition("</think>")[2].strip() == answer
        assert codec.reply_ids(text) == ids


@by_name
def test_history(family: Family):
    """A thought is in history as the template has it, and by `history_thoughts` otherwise."""
    replies = as_written(family, *THINKING)
    messages = say(*replies[:5])
    for kept, history in ((family.thinks == "no", "template"), (True, "keep"), (False, "drop")):
        codec = ChatCodec(family.tokenizer(), {**family.arguments, "history_thoughts": history})
        text = codec.tokenizer.decode(codec.prompt(messages))
        assert ("A door, so I go." in text) == kept
        assert "Action: go" in text
        state = codec.encode(say(*replies)).state(2)
        assert state == codec.prompt(messages)


def test_the_table_of_the_documentation():
    assert table() in PAGE.read_text(encoding="utf-8"), "run python -m tests.agents.families"
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) >= 20
    assert table().count("| yes |") == len(FAMILIES)
