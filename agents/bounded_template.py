"""Chat templates within bounds: one that runs for ever, or fills the memory, fails instead.

A template is a program that comes with a model. jinja's sandbox keeps it from files and modules,
but not from nested loops, from macros that call each other, or from `"x" * 10**9`. Here every
value that a template makes has a bounded size (the conversation's own, many times over), and so has
all that it makes together; and the processor time is looked at in every turn of a loop and in every
call, filter, sum and output. What lies between two looks is one operation on values of bounded
size, and those that could take long even so are sized up before (`_size_of_result`).

The environment is that of transformers, so that a template renders as `apply_chat_template` does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache, wraps
from itertools import chain
from math import inf
from typing import Any

from jinja2 import Environment, Template, nodes, pass_context
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 3.0
"""Processor time of one rendering."""
SOURCE = 256 * 1024
"""Characters of a template; the longest known have 30,000."""
_EACH = 32
"""Characters that an item of a list counts for beside its own."""
_DEPTH = 100
"""How deep lists and objects may be nested."""
_BITS = 1 << 16
"""Size of a whole number."""
_LARGEST = 2**24
"""Characters of a conversation, beyond which its template may take no more."""


class TemplateLimit(Exception):
    """A template takes too long or makes too much."""


class _Budget:
    """What one rendering may still take; `size` is that of all it is given, in characters."""

    def __init__(self, size: float):
        self.longest = 2**20 + 16 * size
        self._left = 2**25 + 512 * size
        self._until = time.thread_time() + SECONDS

    def tick(self) -> None:
        if time.thread_time() > self._until:
            raise TemplateLimit(f"it takes more than {SECONDS:g} s of processor time")

    def limit(self, size: float) -> None:
        """Raises TemplateLimit for a value of more than the allowed size."""
        if size > self.longest:
            raise TemplateLimit(f"a text or list of it exceeds {self.longest:,.0f} characters")

    def weigh(self, values: Iterable[Any]) -> None:
        for value in values:
            self.limit(_weight(value, self.longest))

    def spend(self, size: float) -> None:
        self._left -= size
        if self._left < 0:
            raise TemplateLimit("it makes too much in all")

    def take(self, value: Any) -> Any:
        """A new value, which counts; of an iterator, its items do as they come."""
        self.weigh((value,))
        if isinstance(value, str):
            self.spend(_EACH + len(value))
        else:
            self.spend(_EACH + _EACH * len(value) if isinstance(value, Collection) else _EACH)
        return self._counted(value) if isinstance(value, Iterator) else value

    def _counted(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.tick()
            yield self.take(item)


_BUDGET: ContextVar[_Budget] = ContextVar("budget of the template that is rendered")


def _weight(value: Any, limit: float = inf) -> float:
    """The size of a value with all that it holds, in characters; more than `limit` if it exceeds
    that, or is nested too deeply."""
    if isinstance(value, str):
        return len(value)
    total: float = 0
    rest = [(value, 0)]
    while rest:
        item, depth = rest.pop()
        total += _EACH
        if isinstance(item, Namespace):
            item = item._Namespace__attrs  # type: ignore[attr-defined]
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, int):
            total += item.bit_length() // 2 if abs(item) >> 64 else 0
        elif isinstance(item, range):
            total += _EACH * len(item)
        elif isinstance(item, Collection):
            if total + _EACH * len(item) > limit or depth > _DEPTH:
                return inf
            inner = chain(item, item.values()) if isinstance(item, Mapping) else item
            rest += [(part, depth + 1) for part in inner]
        if total > limit:
            return inf
    return total


# How large a result may become -------------------------------------------------------------------

_LINEAR = {
    *("split", "splitlines", "partition", "find", "index", "count", "startswith", "endswith"),
    *("removeprefix", "removesuffix", "upper", "lower", "title", "capitalize", "casefold"),
}
"""Methods of texts whose results and times grow as the text does."""
_SCANS = {"rfind", "rindex", "rsplit", "rpartition", "strip", "lstrip", "rstrip"}
"""Methods whose time, but not their result, can grow with text times argument."""
_GROWING = {"replace", "join", "center", "indent", "batch", "slice", "round", "format", "tojson"}
"""Filters whose results can grow more than what they are given."""
_REFUSED = {"urlize", "striptags", "wordwrap", "xmlattr", "pprint", "encode", "decode"}
"""Filters and methods that can take quadratic time, and that no chat template needs."""
_SPEC = re.compile(r"%[^a-zA-Z%]*+|\{[^{}]*+\}")
_SPEC_ELSEWHERE = re.compile(r"%[^a-zA-Z%*]*+\*|\{[^{}:]*+:[^{}]*+\{")
"""A width that is an argument itself."""


def _size_of_result(name: str, value: Any, arguments: list[Any], named: Mapping[str, Any]) -> float:
    """At most so many characters a method or a filter gives for a value and its arguments."""
    if name.startswith("format") or name == "%":
        return _size_formatted(str(value), [*arguments, *named.values()])
    if name == "replace" and len(arguments) > 1 and not named:
        text, old, new = str(value), str(arguments[0]), str(arguments[1])
        return len(text) + len(new) * (text.count(old) if old else len(text) + 1)
    sizes = [_extent(argument) for argument in (*arguments, *named.values())]
    return (1 + _weight(value)) * (1 + sum(sizes))


def _extent(value: Any) -> float:
    """The size of an argument; of a number, which may be a width, the number itself."""
    return abs(value) if isinstance(value, int) else _weight(value)


def _size_formatted(text: str, values: list[Any]) -> float:
    if _SPEC_ELSEWHERE.search(text):
        return inf
    specs = _SPEC.findall(text)
    widths = sum(float(digits) for spec in specs for digits in re.findall(r"\d+", spec))
    return len(text) + widths + len(specs) * sum(map(_weight, values))


# The environment ----------------------------------------------------------------------------------


class _Bounds(Environment):
    """An environment whose templates spend from the budget of their rendering."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> Any:
        bounded = _Counting().visit(source)
        bounded.set_environment(self)
        return super()._generate(bounded, *args, **kwargs)

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        budget, pieces, size = _BUDGET.get(), [], 0
        for part in parts:
            size += len(part)
            budget.limit(size)
            pieces.append(part)
        return str(budget.take("".join(pieces)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = _BUDGET.get()
        budget.tick()
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and numbers:
            budget.limit(0 if left.bit_length() * abs(right) < _BITS else inf)
        elif operator == "*" and numbers:
            budget.limit(0 if left.bit_length() + right.bit_length() < _BITS else inf)
        elif operator == "*":
            budget.limit(_weight(left) * right if isinstance(right, int) else 0)
            budget.limit(_weight(right) * left if isinstance(left, int) else 0)
        elif operator == "%" and isinstance(left, str | bytes):
            budget.limit(_size_of_result("%", left, [right], {}))
        return budget.take(super().call_binop(context, operator, left, right))  # type: ignore[misc]

    def call(__self, __context: Any, __function: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.tick()
        named = {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}
        budget.weigh((*args, *named.values()))
        method = getattr(__function, "__wrapped__", __function)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes | int) and name not in _LINEAR:
            if name == "join":
                args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
            if name in _REFUSED:
                raise TemplateLimit(f"it uses {name}")
            size = _size_of_result(name, owner, list(args), named)
            budget.limit(size / 64 if name in _SCANS else size)
        return budget.take(super().call(__context, __function, *args, **kwargs))  # type: ignore[misc]


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    skipped = hasattr(function, "jinja_pass_arg")  # its first argument is no value

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.tick()
        if name in _REFUSED:
            raise TemplateLimit(f"it uses the filter {name}")
        head, (value, *arguments) = args[:skipped], args[skipped:]
        if isinstance(value, Iterator) and name in _GROWING:
            value = list(value)
        budget.weigh((value, *arguments, *kwargs.values()))
        if name in _GROWING:
            budget.limit(_size_of_result(name, value, arguments, kwargs))
        if name == "sum" and any(
            isinstance(a, list | tuple) for a in (*arguments, *kwargs.values())
        ):
            raise TemplateLimit("it adds up lists")  # each sum copied anew
        return budget.take(function(*head, value, *arguments, **kwargs))

    return run


def _tick(value: Any) -> bool:
    _BUDGET.get().tick()
    return True


def _taken(value: Any) -> Any:
    return _BUDGET.get().take(value)


def _joined(values: list[Any]) -> str:
    budget = _BUDGET.get()
    budget.tick()
    budget.weigh((values,))
    return str(budget.take("".join(map(str, values))))


@pass_context  # so that nothing is written at compile time
def _shown(context: Any, value: Any) -> Any:
    budget = _BUDGET.get()
    budget.tick()
    if not isinstance(value, str):  # of anything else a text is made
        size = _weight(value, budget.longest)
        budget.limit(size)
        budget.spend(size)
    return value


class _Counting(NodeTransformer):
    """Puts filters of ours around whatever makes a value or repeats work without a call."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filtered("(tick)", nodes.Const(None))))
        if node.test is not None:
            node.test = nodes.And(_filtered("(tick)", nodes.Const(None)), node.test)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("(joined)", nodes.List(node.nodes))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("(taken)", node) if isinstance(node.arg, nodes.Slice) else node

    def _visit_literal(self, node: Any) -> nodes.Node:
        is_target = getattr(node, "ctx", "load") != "load"
        if is_target or all(isinstance(item, nodes.Const) for item in node.items):
            return self.generic_visit(node)
        return _filtered("(taken)", self.generic_visit(node))

    visit_List = visit_Tuple = visit_Dict = _visit_literal


def _filtered(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    plain = _compile_jinja_template("").environment
    environment = plain.overlay(optimized=False, finalize=_shown)
    environment.__class__ = type("BoundedEnvironment", (_Bounds, type(plain)), {})
    filters = {name: _bounded_filter(name, run) for name, run in plain.filters.items()}
    own = {"(tick)": _tick, "(taken)": _taken, "(joined)": _joined}
    environment.filters = {**filters, **own}
    environment.globals = {k: v for k, v in plain.globals.items() if k != "lipsum"}
    return environment


@lru_cache(maxsize=128)
def _compiled(source: str) -> Template:
    if len(source) > SOURCE:
        raise TemplateLimit(f"it has {len(source):,} characters, more than {SOURCE:,}")
    return _environment().from_string(source)


def render(source: str, values: Mapping[str, Any]) -> str:
    """What a template writes, given these values. Raises TemplateLimit, and what the template
    itself raises."""
    before = _BUDGET.set(_Budget(min(_weight(values), _LARGEST)))
    try:
        return _compiled(source).render(values)
    finally:
        _BUDGET.reset(before)
