"""The encyclopedia's actions as functions."""

from __future__ import annotations

from stepagent.envs.tools import Tool

SEARCH = Tool(
    "search",
    "Opens the page with that title and shows how it begins.",
    "search[{entity}]",
    {"entity": {"description": "the name of one person, place, work or thing"}},
)
LOOKUP = Tool(
    "lookup",
    "Shows the next sentence of the open page that has the keyword in it.",
    "lookup[{keyword}]",
    {"keyword": {"description": "a word of the open page"}},
)
FINISH = Tool(
    "finish",
    "Hands in the answer and ends the task.",
    "finish[{answer}]",
    {"answer": {"description": "the answer, as briefly as possible"}},
)
