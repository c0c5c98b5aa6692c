"""Mind2Web against upstream's way: steps per second, and pruning of large pages.

In every step, upstream parses the page, searches it once per candidate (XPath), copies it, removes
what is not needed, and serialises the rest. Ours parses a page once, draws any view from the parsed
tree, and caches the views. Both write the same text (checked here). The pages are the bundled ones,
generated ones of 2 MB, and, if `STEPAGENT_DATA` is set, the largest of the real ones.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lxml import etree

from stepagent import envs
from stepagent.envs.core import checksum
from stepagent.envs.mind2web.data import PlainFile
from stepagent.envs.mind2web.env import Mind2WebEnv
from stepagent.envs.mind2web.prune import NODE_ID, Candidate, Page, attributes_text
from stepagent.envs.mind2web.records import Problems
from stepagent.envs.mind2web.sites import BundledSites
from stepagent.eval.benches import Options, Row, measure, settings

MIND2WEB = "stepagent/Mind2Web-v0"


def bench(options: Options) -> list[Row]:
    """Steps of the expert, and seconds to prune pages of different size.

    Settings: tasks (of the test split), candidates (on large pages), megabytes (of generated ones).
    """
    args = settings(options, tasks=24, candidates=50, megabytes=2.0)
    rows = [_steps(args["tasks"], options.repeats)]
    pages = {"bundled page": _bundled()}
    if folder := os.environ.get("STEPAGENT_DATA"):
        pages["largest real page (cut at 8 kB)"] = _largest_real(Path(folder))
    html = big_page(args["megabytes"])
    pages[f"page of {len(html) / 1e6:.1f} MB"] = (html, _spread(html, args["candidates"]))
    for name, (html, candidates) in pages.items():
        rows += _pruning(name, html, candidates, options.repeats)
    return rows


def _steps(tasks: int, repeats: int) -> Row:
    """The expert's episodes: in our environment, and with upstream's pruning in every step."""
    env = envs.make(MIND2WEB, split="test")
    assert isinstance(env, Mind2WebEnv)
    source, plans = BundledSites("cleaned", Problems()), []
    for task_id in sorted(env.tasks, key=checksum)[:tasks]:
        env.reset(seed=0, options={"task_id": task_id})
        plans.append((source.task(task_id), [action for _, action in env.expert_plan()]))

    def ours() -> None:
        for task, actions in plans:
            env.reset(seed=0, options={"task_id": task.id})
            for action in actions:
                env.step(action)

    def upstream() -> None:
        for task, actions in plans:
            env.reset(seed=0, options={"task_id": task.id})
            for step, action in zip(task.steps, actions, strict=True):
                upstream_view(step.html, [candidate.node for candidate in step.candidates])
                env.step(action)

    steps = sum(len(actions) for _, actions in plans)
    our_seconds, upstream_seconds = measure(ours, upstream, repeats)
    env.close()
    return Row.more_is_better(
        "Mind2Web steps", steps / our_seconds, steps / upstream_seconds, "steps/s"
    )


def _pruning(name: str, html: str, candidates: Sequence[Candidate], repeats: int) -> list[Row]:
    """A page seen for the first time, and again around other candidates."""
    nodes = [candidate.node for candidate in candidates]
    if Page(html).draw(candidates).text != upstream_view(html, nodes):
        raise ValueError(f"{name}: the two ways of pruning do not agree")
    page, upstream = Page(html), lambda: upstream_view(html, nodes)
    first, upstream_first = measure(lambda: Page(html).draw(candidates), upstream, repeats)
    again, upstream_again = measure(lambda: page.draw(candidates), upstream, repeats)
    return [
        Row.less_is_better(f"Mind2Web, {name}, first view", first, upstream_first, "s"),
        Row.less_is_better(f"Mind2Web, {name}, further views", again, upstream_again, "s"),
    ]


def _bundled() -> tuple[str, tuple[Candidate, ...]]:
    source = BundledSites("cleaned", Problems())
    steps = [step for name in source.ids("test")[::8] for step in source.task(name).steps]
    step = max(steps, key=lambda step: len(step.html))
    return step.html, step.candidates


def _largest_real(folder: Path) -> tuple[str, tuple[Candidate, ...]]:
    """The real page with the most candidates on it (all are cut to the same size)."""
    source = PlainFile(folder / "mind2web" / "steps_100.jsonl", "cleaned", Problems())
    names = [name for split in ("train", "dev", "test") for name in source.ids(split)]
    steps = [step for name in names for step in source.task(name).steps]
    pages = [(Page(step.html), step) for step in steps]
    on = [tuple(c for c in step.candidates if c.node in page) for page, step in pages]
    best = max(range(len(steps)), key=lambda i: len(on[i]))
    return str(etree.tostring(_tree(steps[best].html), encoding="unicode")), on[best]


def big_page(megabytes: float, seed: int = 0) -> str:
    """Cleaned HTML of that size: nested sections, lists of links, forms."""
    rng, parts, size, number = np.random.default_rng(seed), [], 0, 10
    words = "rooms offers search price date guests next filter city help".split()  # noqa: SIM905
    while size < megabytes * 1e6:
        depth = int(rng.integers(2, 9))
        nodes = [f'<div backend_node_id="{number + i}">' for i in range(depth)]
        number += depth
        for _ in range(int(rng.integers(2, 12))):
            word, other = rng.choice(words, size=2)
            nodes.append(
                f'<li backend_node_id="{number}"><a backend_node_id="{number + 1}" role="link" '
                f'aria_label="{word} {other}"><text backend_node_id="{number + 2}">{word} {other} '
                f"{number}</text></a></li>"
            )
            number += 3
        nodes += ["</div>"] * depth
        parts.append("".join(nodes))
        size += len(parts[-1])
    return f'<html backend_node_id="1"><body backend_node_id="2">{"".join(parts)}</body></html>'


def _spread(html: str, count: int) -> tuple[Candidate, ...]:
    """Evenly spaced links of a generated page."""
    links = re.findall(r'<a backend_node_id="(\d+)"', html)
    return tuple(Candidate(node, "a") for node in links[:: max(1, len(links) // count)][:count])


# Upstream's way ---------------------------------------------------------------------------------


def _tree(html: str) -> Any:
    return etree.fromstring(html, etree.XMLParser(recover=True))


def upstream_view(html: str, nodes: Sequence[str]) -> str:
    """The page around the candidates, as upstream computes it: from scratch."""
    tree, kept_nodes = _tree(html), set()
    for name in nodes:
        (candidate, *_) = tree.xpath(f"//*[@{NODE_ID}='{name}']")
        kept_nodes |= {candidate, *candidate.iterancestors(), *_below(candidate, 5)[:50]}
        parent = candidate.getparent()
        if parent is not None:
            siblings = [x for x in parent if x.tag != "text"]
            at = siblings.index(candidate)
            kept_nodes |= set(siblings[max(0, at - 3) : at + 4])
    for node in kept_nodes:
        node.set("kept", "")
    pruned, candidates = copy.deepcopy(tree), set(nodes)
    numbers: dict[str, int] = {}
    for node in reversed(pruned.xpath("//*")):
        parent = node.getparent()
        if "kept" not in (parent if node.tag == "text" else node).attrib:
            parent.remove(node)
            continue
        is_candidate = node.get(NODE_ID) in candidates and node.tag != "text"
        bare = not is_candidate and node.tag != "text" and not set(node.attrib) - {NODE_ID, "kept"}
        says = any(child.tag == "text" for child in node)
        if bare and parent is not None and not says and len(node) <= 1:
            for child in list(node):
                node.addprevious(child)
            parent.remove(node)
    for node in pruned.xpath("//*"):
        if node.tag == "text":
            node.text = " ".join((node.text or "").split()[:20])
            continue
        name, text = node.attrib.pop(NODE_ID, ""), attributes_text(node.attrib)
        node.attrib.clear()
        if name in candidates:
            numbers[name] = len(numbers)
            node.set("id", str(numbers[name]))
        if text:
            node.set("meta", text)
    return _written(str(etree.tostring(pruned, encoding="unicode")))


def _below(node: Any, depth: int) -> list[Any]:
    nodes = []
    for child in node if depth >= 0 else ():
        nodes += [child, *_below(child, depth - 1)]
    return nodes


def _written(text: str) -> str:
    """Serialised markup in the form of our views."""
    text = re.sub(r"</?text[^>]*>", " ", text)
    text = re.sub(r' id="(\d+)"', r" id=\1", text)
    text = re.sub(r' meta="([^"]*)"', r" \1", text)
    for code, sign in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        text = text.replace(code, sign)
    text = re.sub(r"<([\w-]+)((?:[^<>]*[^<>/])?)>\s*</\1>", r"<\1\2/>", text)
    text = re.sub(r"(<[^<>/]+[^/]>)", r"\1 ", text)
    return " ".join(re.sub(r"(</[\w-]+>)", r" \1 ", text).replace("/>", "/> ").split())
