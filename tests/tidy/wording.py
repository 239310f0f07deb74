"""Rules about names, sizes, comments and docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from . import tables
from .sources import (
    FunctionNode,
    Source,
    by_position,
    code_lines,
    decorators,
    is_override,
    is_public,
    last_name,
    ours,
)

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600
PARAMETERS_MAX = 5
POSITIONAL_MAX = 2

_SILENCED = re.compile(
    r"type:\s*ignore(\[[^]]*\])?|noqa(:\s*[A-Z]+\d+(,\s*[A-Z]+\d+)*)?|pragma: no cover"
)

# What a comment in prose can hardly be.
_STATEMENTS = (
    ast.Assert,
    ast.Assign,
    ast.AugAssign,
    ast.Delete,
    ast.Import,
    ast.ImportFrom,
    ast.Raise,
    ast.Return,
)


def names_are_not_banned(sources: Sequence[Source]) -> list[str]:
    """Modules and classes are named by words that say something."""
    faults = []
    for source in sources:
        names = [(1, source.module.rpartition(".")[2])]
        names += [
            (node.lineno, node.name)
            for node in ast.walk(source.tree)
            if isinstance(node, ast.ClassDef)
        ]
        for line, name in names:
            words = {
                word.lower().removesuffix("s")
                for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
            }
            if banned := sorted(words & tables.BANNED_WORDS):
                faults.append(source.at(line, f"{name}: {banned[0]} says nothing"))
    return faults


def functions_are_short(sources: Sequence[Source]) -> list[str]:
    """At most 70 lines of code, the docstring aside."""
    return [
        source.at(node.lineno, f"{node.name} has {lines} lines of code")
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, FunctionNode)
        and (lines := code_lines(source, node)) > FUNCTION_LINES_MAX
    ]


def modules_are_short(sources: Sequence[Source]) -> list[str]:
    """At most 600 lines."""
    return [
        source.at(1, f"has {lines} lines")
        for source in sources
        if (lines := len(source.text.splitlines())) > MODULE_LINES_MAX
    ]


def parameters_are_few(sources: Sequence[Source]) -> list[str]:
    """At most five, unless a library or a constructor names them."""
    return [
        source.at(node.lineno, f"{node.name} takes {count} parameters")
        for source in sources
        for parent, node in source.functions()
        if not is_override(node.name)
        and not decorators(node) & tables.CALLED_BY_NAME
        and (count := _counted(parent, node)) > PARAMETERS_MAX
    ]


def _counted(parent: ast.ClassDef | None, function: FunctionNode) -> int:
    # What an object is made of is no longer than it is, as with a dataclass's fields.
    positional = len(by_position(parent, function))
    by_name = 0 if function.name == "__init__" else len(function.args.kwonlyargs)
    return positional + by_name


def parameters_past_two_have_keywords(sources: Sequence[Source]) -> list[str]:
    """Or past three where types differ, so that mypy sees when two are swapped."""
    return [
        source.at(node.lineno, f"{node.name} takes {len(names)} by position")
        for source in ours(sources)
        for parent, node in source.functions()
        if (is_public(node.name) or node.name == "__init__")
        and not decorators(node) & tables.CALLED_BY_NAME
        and not (parent is not None and not is_public(parent.name))
        and not is_override(node.name)
        and not _is_zope(parent)
        and len(names := by_position(parent, node)) > POSITIONAL_MAX
        and not (len(names) == POSITIONAL_MAX + 1 and _types_differ(names))
    ]


def _types_differ(names: Sequence[ast.arg]) -> bool:
    types = [ast.unparse(name.annotation) for name in names if name.annotation]
    return len(set(types)) == len(names)


def todos_have_links(sources: Sequence[Source]) -> list[str]:
    """A TODO without an issue is forgotten."""
    return [
        source.at(line, "TODO without the link of an issue")
        for source in sources
        for line, text in source.comments
        if re.search(r"\b(TODO|FIXME|XXX)\b", text) and "://" not in text
    ]


def comments_are_sentences(sources: Sequence[Source]) -> list[str]:
    """No commented-out code, no banners."""
    return [
        source.at(line, f"{fault}: {text}")
        for source in sources
        for line, text in source.comments
        for fault, found in (
            ("a banner", re.search(r"[-=#*~_]{4}", text)),
            ("commented-out code", _is_code(text)),
        )
        if found
    ]


def _is_code(comment: str) -> bool:
    try:
        parsed = ast.parse(comment).body
    except SyntaxError:
        return bool(re.match(r"(async )?(def|class) \w+.*:$", comment))
    return any(
        isinstance(node, _STATEMENTS)
        or (isinstance(node, ast.AnnAssign) and node.value is not None)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        for node in parsed
    )


def silenced_findings_have_reasons(sources: Sequence[Source]) -> list[str]:
    """``type: ignore``, ``noqa`` and ``no cover`` are followed by words."""
    return [
        source.at(line, "silenced without a reason")
        for source in sources
        for line, text in source.comments
        if (silenced := _SILENCED.match(text))
        and not re.search(r"\w{2,}", text[silenced.end() :])
    ]


def public_things_have_docstrings(sources: Sequence[Source]) -> list[str]:
    """Modules, classes, functions; an override may leave it to its base."""
    known = {node.name: node for source in sources for node in source.classes()}
    faults = []
    for source in sources:
        if ast.get_docstring(source.tree) is None:
            faults.append(source.at(1, "the module has no docstring"))
        faults += [
            source.at(node.lineno, f"{node.name} has no docstring")
            for node in source.classes()
            if is_public(node.name) and ast.get_docstring(node) is None
        ]
        faults += [
            source.at(node.lineno, f"{node.name} has no docstring")
            for parent, node in source.functions()
            if is_public(node.name)
            and ast.get_docstring(node) is None
            and (parent is None or _must_document(source, parent, node, known))
        ]
    return faults


def _must_document(
    source: Source,
    parent: ast.ClassDef,
    method: FunctionNode,
    known: dict[str, ast.ClassDef],
) -> bool:
    # Methods of tests and of their fakes are asked for elsewhere, or are overrides.
    if not is_public(parent.name) or not source.below("twisted_kvs"):
        return False
    if decorators(method) & {"overload", "setter"}:
        return False
    bases = list(_bases(parent, known))
    foreign = any(isinstance(base, str) for base in bases) or _is_zope(parent)
    if foreign and is_override(method.name):
        return False
    return not any(
        isinstance(node, FunctionNode)
        and node.name == method.name
        and ast.get_docstring(node) is not None
        for base in bases
        if isinstance(base, ast.ClassDef)
        for node in base.body
    )


def _is_zope(parent: ast.ClassDef | None) -> bool:
    # Twisted's interfaces say how their methods are called.
    return parent is not None and any(
        last_name(decorator) == "implementer" for decorator in parent.decorator_list
    )


def _bases(
    parent: ast.ClassDef, known: dict[str, ast.ClassDef]
) -> Iterator[ast.ClassDef | str]:
    # All classes above; the names of those that are not ours.
    for name in map(last_name, parent.bases):
        if name in known and known[name] is not parent:
            yield known[name]
            yield from _bases(known[name], known)
        else:
            yield name
