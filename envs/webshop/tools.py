"""WebShop's actions as functions."""

from __future__ import annotations

from stepagent.envs.tools import Tool

TOOLS = (
    Tool(
        "search",
        "Searches the shop; possible on every page.",
        "search[{keywords}]",
        {"keywords": {"description": "words to look for"}},
    ),
    Tool(
        "click",
        "Presses something that the page shows, by its text.",
        "click[{element}]",
        {"element": {"description": "a product's id, an option's value, or the text of a button"}},
    ),
)
