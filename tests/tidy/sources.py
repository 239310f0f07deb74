"""Source files as rules see them, and what rules ask of their syntax trees."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

FunctionNode: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name, with its relative dots resolved."""

    line: int
    module: str
    name: str = ""
    """Empty where the module itself is imported."""
    local: str = ""
    """What it is called in this file."""

    @property
    def full(self) -> str:
        """Give module and name as one dotted path."""
        return f"{self.module}.{self.name}" if self.name else self.module


class Source:
    """One Python file: its path below the project, posix style, and its text."""

    def __init__(self, path: str, text: str) -> None:
        """Parse it; ``SyntaxError`` if it is no Python."""
        self.path = path
        self.text = text
        self.tree = ast.parse(text, path)

    @property
    def module(self) -> str:
        """Its dotted name."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def is_package(self) -> bool:
        """Tell whether it is an ``__init__.py``."""
        return self.path.endswith("/__init__.py")

    def below(self, *roots: str) -> bool:
        """Tell whether it is one of these modules or in one of these packages."""
        return is_below(self.module, roots)

    def at(self, line: int, fault: str) -> str:
        """Word a fault so that an editor can jump to it."""
        return f"{self.path}:{line}: {fault}"

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """All its imports, those within functions included."""
        return tuple(self._imports())

    def _imports(self) -> Iterator[Import]:
        package = self.module.split(".")
        if not self.is_package:
            package.pop()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(
                        node.lineno, alias.name, local=alias.asname or alias.name
                    )
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *filter(None, [node.module])])
                for alias in node.names:
                    yield Import(
                        node.lineno, module, alias.name, alias.asname or alias.name
                    )

    @cached_property
    def comments(self) -> tuple[tuple[int, str], ...]:
        """Line and text, without the ``#``, of its comments."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return tuple(
            (token.start[0], token.string.lstrip("#").strip())
            for token in tokens
            if token.type == tokenize.COMMENT
        )

    def classes(self) -> Iterator[ast.ClassDef]:
        """List the classes of the module's top level."""
        return (node for node in self.tree.body if isinstance(node, ast.ClassDef))

    def functions(self) -> Iterator[tuple[ast.ClassDef | None, FunctionNode]]:
        """List the module's functions and its classes' methods, with their class."""
        for node in self.tree.body:
            if isinstance(node, FunctionNode):
                yield None, node
        for parent in self.classes():
            for node in parent.body:
                if isinstance(node, FunctionNode):
                    yield parent, node


Rule: TypeAlias = Callable[[Sequence[Source]], list[str]]


def read_sources(project: Path, roots: Iterable[str]) -> list[Source]:
    """Read all Python files below these directories of the project, sorted."""
    return [
        Source(path.relative_to(project).as_posix(), path.read_text("utf-8"))
        for root in roots
        for path in sorted((project / root).rglob("*.py"))
    ]


def is_below(module: str, roots: Iterable[str]) -> bool:
    """Tell whether a dotted name is one of these or within one of these."""
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def ours(sources: Iterable[Source]) -> Iterator[Source]:
    """Keep the files of the package."""
    return (source for source in sources if source.below("twisted_kvs"))


def tests_of(sources: Iterable[Source]) -> Iterator[Source]:
    """Keep the files of the tests."""
    return (source for source in sources if source.below("tests"))


def dotted(node: ast.AST) -> str:
    """Write ``a.b.c`` of an expression as such, calls and subscripts removed."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def last_name(node: ast.AST) -> str:
    """Give the ``c`` of ``a.b.c``."""
    return dotted(node).rpartition(".")[2]


def is_public(name: str) -> bool:
    """Tell whether a name has no leading underscore."""
    return not name.startswith("_")


def is_override(name: str) -> bool:
    """Tell whether a method name is in Twisted's camelCase: never one of ours."""
    return name != name.lower()


def decorators(function: FunctionNode) -> set[str]:
    """Name a function's decorators."""
    return {last_name(node) for node in function.decorator_list}


def by_position(parent: ast.ClassDef | None, function: FunctionNode) -> list[ast.arg]:
    """List the parameters that can be given by position, ``self`` and stars aside."""
    found = [*function.args.posonlyargs, *function.args.args]
    if parent is not None and "staticmethod" not in decorators(function):
        del found[0]
    return found


def code_lines(source: Source, function: FunctionNode) -> int:
    """Count a function's lines but for docstring, comments and blank ones."""
    lines = set(range(function.lineno, (function.end_lineno or 0) + 1))
    if ast.get_docstring(function) is not None:
        docs = function.body[0]
        lines -= set(range(docs.lineno, (docs.end_lineno or 0) + 1))
    text = source.text.splitlines()
    return sum(bool(re.match(r"\s*[^#\s]", text[line - 1])) for line in lines)


def own_nodes(function: FunctionNode) -> Iterator[ast.AST]:
    """Walk a function's body, but not the functions within it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, FunctionNode | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))
