"""Jinja as transformers sets it up for chat templates, with limits on what a template may use.

A template comes with a model and is not trusted: jinja's sandbox keeps it from Python's internals, and a budget bounds loops, calls, the
output, and what one operator may build. What a single filter builds out of data of the allowed size is not bounded.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from contract.data.text import Span

MAX_STEPS = 10**6
"""Rounds of loops, and calls, of one rendering."""
MAX_SIZE = 2**24
"""Characters of one rendering, and characters or items that an operator may build."""
MAX_BITS = 4096
"""Of an integer that an operator may build."""
SIZE_OF_A_STEP = 4096
"""Characters or items that an operator builds in the time of a round."""

SOURCE_NAME = "<chat template>"
_COUNTED, _STEP, _BOUNDED = "<counted>", "<step>", "<bounded>"
"""Filters that no template can name."""

Item = TypeVar("Item")


class Refused(jinja2.TemplateError):
    """The template asked for what it may not have, or refuses the dialogue itself."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """A rendering. generated: the characters that its {% generation %} blocks wrote, ascending."""

    text: str
    generated: tuple[Span, ...]


class Program:
    """A compiled template. One rendering at a time."""

    def __init__(self, source: str) -> None:
        """Compiles.

        Raises:
            jinja2.TemplateSyntaxError: it's no template. Other exceptions are possible too: Python's own compiler has limits.
        """
        self._environment = _Environment()
        tree = self._environment.parse(source, SOURCE_NAME, SOURCE_NAME)
        self.generates = any(node.name == "_generation" for node in tree.find_all(jinja2.nodes.ExtensionAttribute))
        for loop in tree.find_all(jinja2.nodes.For):
            loop.iter = _filtered(loop.iter, _COUNTED)
            if loop.recursive:  # called again, it goes over other items
                loop.body.insert(0, jinja2.nodes.ExprStmt(_filtered(jinja2.nodes.Const(None), _STEP), lineno=loop.lineno))
        for joined in tree.find_all(jinja2.nodes.Concat):
            joined.nodes = [_filtered(node, _BOUNDED) for node in joined.nodes]
        code = self._environment.compile(tree, SOURCE_NAME, SOURCE_NAME)
        self._template = jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))

    def render(self, **variables: Any) -> Output:
        """Renders.

        Raises:
            Refused: a limit; `raise_exception`; strftime_now; a {% generation %} block inside a macro or a {% set %} block.
            Exception: whatever the template's expressions raise.
        """
        environment = self._environment
        environment.begin()
        pieces: list[str] = []
        for piece in self._template.generate(variables):
            pieces.append(piece)
            environment.written += len(piece)
            if environment.written > MAX_SIZE:
                raise Refused(f"more than {MAX_SIZE:,} characters of output")
        text = "".join(pieces)
        for start, its in environment.generated:
            if not text.startswith(its, start):
                raise Refused("a generation block whose text lies elsewhere in the output (inside a macro or a set block)")
        return Output(text=text, generated=tuple((start, start + len(its)) for start, its in environment.generated if its))


class _Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %}: what the assistant says. Notes where its text goes, and passes it on."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_generation"), [], [], body).set_lineno(line)

    def _generation(self, caller: Callable[[], str]) -> str:
        environment = self.environment
        assert isinstance(environment, _Environment)
        text = caller()
        environment.generated.append((environment.written, text))
        return text


class _Environment(ImmutableSandboxedEnvironment):
    """transformers' environment (utils/chat_template_utils.py, 5.23), and a budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self.filters = {name: _limited(function) for name, function in self.filters.items()}
        self.filters |= {"tojson": _tojson, _COUNTED: self._counted, _STEP: self._step, _BOUNDED: self._bounded}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        self.begin()

    def begin(self) -> None:
        """A new rendering, with its whole budget."""
        self.steps, self.written = 0, 0
        self.generated: list[tuple[int, str]] = []

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self._count(1)
        _small((*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if isinstance(left, _SIZED) and isinstance(right, _SIZED):
                self._build(len(left) + len(right))
            return left + right
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise Refused("text formatted with %, and a width of five digits or from a variable")
        for one, other in ((left, right), (right, left)):
            if operator == "*" and isinstance(one, _SIZED) and isinstance(other, int):
                self._build(len(one) * other)
        if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
            _within(left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length(), MAX_BITS)
        return super().call_binop(context, operator, left, right)

    # jinja computes what does not depend on a context once, when it compiles; these count when the template runs.
    @jinja2.pass_context
    def _counted(self, _: jinja2.runtime.Context, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            self._count(1)
            yield item

    def _build(self, size: int) -> None:
        _within(size, MAX_SIZE)
        self._count(max(0, size) // SIZE_OF_A_STEP)

    @jinja2.pass_context
    def _bounded(self, _: jinja2.runtime.Context, value: Any) -> Any:
        if isinstance(value, str):
            self._build(2 * len(value))
        return value

    @jinja2.pass_context
    def _step(self, _: jinja2.runtime.Context, __: None) -> None:
        self._count(1)

    def _count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise Refused(f"more than {MAX_STEPS:,} rounds of loops and calls")


def _filtered(node: jinja2.nodes.Node, name: str) -> jinja2.nodes.Expr:
    assert isinstance(node, jinja2.nodes.Expr)
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Dict:
    """`dict` in a template: a plain dictionary, and no type to climb up from."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` in a template, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that `namespace(self=...)` stays possible
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _public(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)


def _public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise Refused(f"the name {name!r} in a namespace, which begins with an underscore")


def _small(values: Iterable[Any]) -> None:
    """Refuses large integers as arguments: widths and counts are."""
    for value in values:
        if isinstance(value, int):
            _within(value, MAX_SIZE)


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        _small(args[1:])
        _small(kwargs.values())
        return function(*args, **kwargs)

    return limited


_WIDE = re.compile(r"\d{5}|\*")
_SIZED = (str, list, tuple)


def _within(size: int, limit: int) -> None:
    if size > limit:
        raise Refused(f"a size of more than {limit:,} (characters, items, bits)")


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise Refused(f"refused by the template itself: {message}")


def _strftime_now(form: object) -> NoReturn:
    raise Refused("the date of today (strftime_now), which would make the ids depend on the day of the run")
