"""Rules about what belongs where: imports, layers, state."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from . import tables
from .sources import FunctionNode, Source, dotted, is_below, last_name, ours


def core_imports_only_pure_modules(sources: Sequence[Source]) -> list[str]:
    """The core does no I/O: it imports pure modules and itself."""
    return [
        source.at(found.line, f"the core must not import {found.full}")
        for source in ours(sources)
        if source.below("twisted_kvs.core")
        for found in source.imports
        if not is_below(found.module, tables.PURE | {"twisted_kvs.core"})
        and not (
            found.module == "zstandard" and source.module == "twisted_kvs.core.codec"
        )
    ]


def core_calls_only_pure_builtins(sources: Sequence[Source]) -> list[str]:
    """Time, chance and files are arguments of the core, or none of its business."""
    faults = []
    for source in ours(sources):
        if not source.below("twisted_kvs.core"):
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                name = dotted(node.func)
                impure = is_below(name, tables.IMPURE_MODULES | tables.IMPURE_BUILTINS)
                if impure and name not in tables.PURE_CALLS:
                    faults.append(source.at(node.lineno, f"the core calls {name}()"))
    return faults


def imports_follow_the_layers(sources: Sequence[Source]) -> list[str]:
    """A module imports what its row of the layer table allows."""
    faults = []
    for source in ours(sources):
        if source.is_package:
            continue
        allowed = tables.allowed_for(source.module)
        if allowed is None:
            faults.append(source.at(1, "has no row in tests/tidy/tables.py"))
            continue
        faults += [
            source.at(found.line, f"its layer must not import {found.full}")
            for found in source.imports
            if is_below(found.module, ["twisted_kvs"])
            and not is_below(found.full, allowed)
        ]
    return faults


def imports_have_no_cycle(sources: Sequence[Source]) -> list[str]:
    """No module imports itself by way of others."""
    modules = {source.module for source in ours(sources)}
    graph = {
        source.module: sorted(
            {
                found.full if found.full in modules else found.module
                for found in source.imports
            }
            & modules
        )
        for source in ours(sources)
    }
    faults: list[str] = []
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            faults.append(" -> ".join((*path[path.index(module) :], module)))
        elif module not in done:
            for target in graph[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
    return faults


def no_imports_for_type_checking_only(sources: Sequence[Source]) -> list[str]:
    """TYPE_CHECKING would hide a cycle."""
    return [
        source.at(found.line, "TYPE_CHECKING hides an import cycle")
        for source in sources
        for found in source.imports
        if found.name == "TYPE_CHECKING"
    ]


def libraries_stay_at_their_edge(sources: Sequence[Source]) -> list[str]:
    """Klein in web/ only, treq where peers are asked, and so on."""
    return [
        source.at(found.line, f"{library} belongs to {', '.join(sorted(edges))}")
        for source in ours(sources)
        for found in source.imports
        for library, edges in tables.EDGES.items()
        if is_below(found.module, [library])
        and not source.below(*(f"twisted_kvs.{edge}" for edge in edges))
    ]


def reactor_is_an_argument(sources: Sequence[Source]) -> list[str]:
    """Only tap.py and cli.py import the reactor, and tests of processes."""
    return [
        source.at(found.line, "the reactor is an argument here")
        for source in sources
        if not source.below(*tables.REACTOR_IMPORTERS)
        for found in source.imports
        if is_below(found.full, tables.REACTOR)
    ]


def packages_hold_docs_only(sources: Sequence[Source]) -> list[str]:
    """An ``__init__.py`` is a docstring; that of tests/ sets profiles."""
    return [
        source.at(node.lineno, "__init__.py holds docs only")
        for source in sources
        if source.is_package and source.path != "tests/__init__.py"
        for node in source.tree.body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
    ]


def no_state_of_modules(sources: Sequence[Source]) -> list[str]:
    """Two replicas in one process share nothing that can change."""
    return [fault for source in ours(sources) for fault in _module_state(source)]


def _module_state(source: Source) -> Iterator[str]:
    constants: set[str] = set()
    for node in source.tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {name for target in targets if (name := dotted(target)) != "__all__"}
        parts = list(_values(node.value))
        changeable = any(_makes(part, tables.CONTAINERS) for part in parts)
        constants |= {name for name in names if name == name.upper()}
        if changeable and not names <= constants:
            yield source.at(node.lineno, "a container of a module can be changed")
        if any(_makes(part, tables.STATEFUL) for part in parts):
            yield source.at(node.lineno, "state of a module")
    for found in ast.walk(source.tree):
        if isinstance(found, ast.Global):
            yield source.at(found.lineno, "global means state of a module")
        elif isinstance(found, FunctionNode):
            for decorator in found.decorator_list:
                if _is_unbounded_cache(decorator):
                    yield source.at(found.lineno, "a cache needs a limit")
        elif (name := _changed(found)) in constants:
            yield source.at(getattr(found, "lineno", 1), f"{name} is changed")


def _values(node: ast.expr) -> Iterator[ast.AST]:
    # No containers: the list within Callable[[int], str], and what a lambda makes.
    yield node
    if isinstance(node, ast.Subscript | ast.Lambda):
        return
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.keyword):
            yield from _values(part.value)
        elif isinstance(part, ast.expr):
            yield from _values(part)


def _makes(node: ast.AST, kinds: frozenset[str]) -> bool:
    if isinstance(node, ast.Call):
        return last_name(node.func) in kinds
    return type(node).__name__ in kinds


def _is_unbounded_cache(decorator: ast.expr) -> bool:
    if last_name(decorator) == "cache":
        return True
    return (
        isinstance(decorator, ast.Call)
        and last_name(decorator) == "lru_cache"
        and any(
            isinstance(value, ast.Constant) and value.value is None
            for value in [*decorator.args, *(word.value for word in decorator.keywords)]
        )
    )


def _changed(node: ast.AST) -> str:
    # The name of what a statement or call changes in place, if it is a plain name.
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        return dotted(node.value)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in tables.CHANGING_METHODS
    ):
        return dotted(node.func.value)
    return ""
