"""Rules about tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from . import tables
from .sources import (
    FunctionNode,
    Source,
    decorators,
    dotted,
    is_below,
    last_name,
    own_nodes,
    tests_of,
)


def tests_say_what_they_promise(sources: Sequence[Source]) -> list[str]:
    """Each test has a docstring: sentences that end with a full stop."""
    return [
        source.at(
            test.lineno, f"{test.name} has no sentence that says what it promises"
        )
        for source, _, test in _tests(sources)
        if not (ast.get_docstring(test) or "").endswith(".")
    ]


def tests_are_not_coroutines(sources: Sequence[Source]) -> list[str]:
    """SynchronousTestCase passes an ``async def`` test without having run it."""
    return [
        source.at(test.lineno, f"{test.name} is async: it is never run")
        for source, _, test in _tests(sources)
        if isinstance(test, ast.AsyncFunctionDef) and not source.below("tests.process")
    ]


def tests_return_nothing(sources: Sequence[Source]) -> list[str]:
    """Only trial's TestCase waits for a Deferred, and never for that of a draw."""
    return [
        source.at(node.lineno, f"{test.name} gives back what nobody waits for")
        for source, parent, test in _tests(sources)
        if "given" in decorators(test)
        or not {last_name(base) for base in parent.bases} & {"TestCase"}
        for node in own_nodes(test)
        if isinstance(node, ast.Yield | ast.YieldFrom)
        or (isinstance(node, ast.Return) and node.value is not None)
    ]


def tests_pass_fakes(sources: Sequence[Source]) -> list[str]:
    """No mocks, no patching."""
    return [
        source.at(found.line, f"{found.full}: pass a fake")
        for source in tests_of(sources)
        for found in source.imports
        if is_below(found.full, tables.MOCKS)
    ]


def tests_do_not_wait(sources: Sequence[Source]) -> list[str]:
    """No sleeping, no wall clock, no port where no real processes are."""
    return [
        source.at(line, f"{name}: tests pass the time, and open no port")
        for source in tests_of(sources)
        if not source.below(*tables.REAL)
        for line, name in [
            *((found.line, found.module) for found in source.imports),
            *_calls(source),
        ]
        if is_below(name, tables.WAITING)
    ]


def machines_are_run(sources: Sequence[Source]) -> list[str]:
    """Trial never finds ``Machine.TestCase``: a test has to run the machine."""
    run = {
        last_name(part)
        for _, _, test in _tests(sources)
        for node in ast.walk(test)
        if isinstance(node, ast.Call)
        and last_name(node.func) == "run_state_machine_as_test"
        for argument in node.args
        for part in ast.walk(argument)
    }
    return [
        source.at(node.lineno, f"no test runs {node.name}")
        for source in tests_of(sources)
        for node in source.classes()
        if any(last_name(base) == "RuleBasedStateMachine" for base in node.bases)
        and node.name not in run
    ]


def _calls(source: Source) -> Iterator[tuple[int, str]]:
    # Calls by the full name of what is called, whatever it was imported as.
    names = {found.local: found.full for found in source.imports}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            first, dot, rest = dotted(node.func).partition(".")
            yield node.lineno, f"{names.get(first, first)}{dot}{rest}"


def _tests(
    sources: Sequence[Source],
) -> Iterator[tuple[Source, ast.ClassDef, FunctionNode]]:
    for source in tests_of(sources):
        for parent, function in source.functions():
            if parent is not None and function.name.startswith("test_"):
                yield source, parent, function
