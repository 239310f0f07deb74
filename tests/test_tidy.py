"""
The rules of our house style that a machine can check.

Each rule is asked twice: about a snippet that breaks it, which it must find, and about
the whole project, where it must find nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from inspect import getmembers, isfunction
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from .tidy import layout, tables, testing, wording
from .tidy.sources import Rule, Source, read_sources

PROJECT = Path(__file__).parent.parent
ROOTS = ("twisted_kvs", "tests")

DOC = '"""Doc."""\n'
TEST = (
    "class CaseTests(SynchronousTestCase):\n"
    '    """Doc."""\n'
    "    {decorator}\n"
    "    {kind} test_it(self):\n"
    '        """It holds."""\n'
    "        {body}\n"
)


def a_test(kind: str = "def", body: str = "pass", decorator: str = "") -> str:
    """Write a module with one test."""
    return TEST.format(kind=kind, body=body, decorator=decorator)


@lru_cache(maxsize=1)
def project() -> list[Source]:
    """Read the project once."""
    return read_sources(PROJECT, ROOTS)


def rules() -> Iterator[tuple[str, Rule]]:
    """List all rules by name."""
    for module in (layout, wording, testing):
        for name, rule in getmembers(module, isfunction):
            if rule.__module__ == module.__name__ and not name.startswith("_"):
                yield name, rule


class ProjectTests(SynchronousTestCase):
    """The project keeps all rules."""

    def assert_kept(self, rule: Rule) -> None:
        """Fail with a list of what breaks the rule."""
        faults = rule(project())
        if faults:
            self.fail("\n".join([f"{rule.__doc__}", *faults]))

    def test_reads_the_project(self) -> None:
        """The rules see the files of the package and of the tests."""
        paths = {source.path for source in project()}
        self.assertLessEqual(
            {"twisted_kvs/core/errors.py", "tests/test_tidy.py"}, paths
        )

    def test_all_rules_are_asked(self) -> None:
        """No rule was written and then forgotten here or in the tests of rules."""
        names = {f"test_{name}" for name, _ in rules()}
        self.assertLess(20, len(names))
        self.assertLessEqual(names, set(dir(type(self))))
        self.assertLessEqual(names, set(dir(RuleTests)))

    def test_core_imports_only_pure_modules(self) -> None:
        """The core does no I/O: it imports pure modules and itself."""
        self.assert_kept(layout.core_imports_only_pure_modules)

    def test_core_calls_only_pure_builtins(self) -> None:
        """Time, chance and files are arguments of the core, or none of its business."""
        self.assert_kept(layout.core_calls_only_pure_builtins)

    def test_imports_follow_the_layers(self) -> None:
        """A module imports what its row of the layer table allows."""
        self.assert_kept(layout.imports_follow_the_layers)

    def test_imports_have_no_cycle(self) -> None:
        """No module imports itself by way of others."""
        self.assert_kept(layout.imports_have_no_cycle)

    def test_no_imports_for_type_checking_only(self) -> None:
        """TYPE_CHECKING would hide a cycle."""
        self.assert_kept(layout.no_imports_for_type_checking_only)

    def test_libraries_stay_at_their_edge(self) -> None:
        """Klein in web/ only, treq where peers are asked, and so on."""
        self.assert_kept(layout.libraries_stay_at_their_edge)

    def test_reactor_is_an_argument(self) -> None:
        """Only tap.py and cli.py import the reactor, and tests of processes."""
        self.assert_kept(layout.reactor_is_an_argument)

    def test_packages_hold_docs_only(self) -> None:
        """An ``__init__.py`` is a docstring; that of tests/ sets profiles."""
        self.assert_kept(layout.packages_hold_docs_only)

    def test_no_state_of_modules(self) -> None:
        """Two replicas in one process share nothing that can change."""
        self.assert_kept(layout.no_state_of_modules)

    def test_names_are_not_banned(self) -> None:
        """Modules and classes are named by words that say something."""
        self.assert_kept(wording.names_are_not_banned)

    def test_functions_are_short(self) -> None:
        """At most 70 lines of code, the docstring aside."""
        self.assert_kept(wording.functions_are_short)

    def test_modules_are_short(self) -> None:
        """At most 600 lines."""
        self.assert_kept(wording.modules_are_short)

    def test_parameters_are_few(self) -> None:
        """At most five, unless a library or a constructor names them."""
        self.assert_kept(wording.parameters_are_few)

    def test_parameters_past_two_have_keywords(self) -> None:
        """Or past three where types differ, so that mypy sees when two are swapped."""
        self.assert_kept(wording.parameters_past_two_have_keywords)

    def test_todos_have_links(self) -> None:
        """A TODO without an issue is forgotten."""
        self.assert_kept(wording.todos_have_links)

    def test_comments_are_sentences(self) -> None:
        """No commented-out code, no banners."""
        self.assert_kept(wording.comments_are_sentences)

    def test_silenced_findings_have_reasons(self) -> None:
        """``type: ignore``, ``noqa`` and ``no cover`` are followed by words."""
        self.assert_kept(wording.silenced_findings_have_reasons)

    def test_public_things_have_docstrings(self) -> None:
        """Modules, classes, functions; an override may leave it to its base."""
        self.assert_kept(wording.public_things_have_docstrings)

    def test_tests_say_what_they_promise(self) -> None:
        """Each test has a docstring: sentences that end with a full stop."""
        self.assert_kept(testing.tests_say_what_they_promise)

    def test_tests_are_not_coroutines(self) -> None:
        """SynchronousTestCase passes an ``async def`` test without having run it."""
        self.assert_kept(testing.tests_are_not_coroutines)

    def test_tests_return_nothing(self) -> None:
        """Only trial's TestCase waits for a Deferred, and never for that of a draw."""
        self.assert_kept(testing.tests_return_nothing)

    def test_tests_pass_fakes(self) -> None:
        """No mocks, no patching."""
        self.assert_kept(testing.tests_pass_fakes)

    def test_tests_do_not_wait(self) -> None:
        """No sleeping, no wall clock, no port outside tests/process."""
        self.assert_kept(testing.tests_do_not_wait)

    def test_machines_are_run(self) -> None:
        """Trial never finds ``Machine.TestCase``: a test has to run the machine."""
        self.assert_kept(testing.machines_are_run)


class RuleTests(SynchronousTestCase):
    """Each rule finds what it is for, and nothing in what is right."""

    def assert_found(self, rule: Rule, path: str, *snippets: str) -> None:
        """Each snippet alone, as this file, breaks the rule."""
        for snippet in snippets:
            self.assertNotEqual(rule([Source(path, snippet)]), [], snippet)

    def assert_right(self, rule: Rule, path: str, *snippets: str) -> None:
        """No snippet, as this file, breaks the rule."""
        for snippet in snippets:
            self.assertEqual(rule([Source(path, snippet)]), [], snippet)

    def test_core_imports_only_pure_modules(self) -> None:
        """Clocks, files, sockets, Twisted and logs are kept out of the core."""
        rule = layout.core_imports_only_pure_modules
        self.assert_found(
            rule,
            "twisted_kvs/core/view.py",
            "import time",
            "import os.path",
            "from socket import socket",
            "from secrets import token_bytes",
            "from twisted.internet.defer import Deferred",
            "def late():\n    import logging",
            "from ..node import Node",
            "import zstandard",
        )
        self.assert_right(
            rule,
            "twisted_kvs/core/view.py",
            "import msgspec, random, collections.abc",
            "from .names import Name",
            "from . import secrets",
        )
        self.assert_right(rule, "twisted_kvs/core/codec.py", "import zstandard")
        self.assert_right(rule, "twisted_kvs/node.py", "import time")

    def test_core_calls_only_pure_builtins(self) -> None:
        """Files and chance that is no argument are kept out of the core."""
        rule = layout.core_calls_only_pure_builtins
        path = "twisted_kvs/core/view.py"
        self.assert_found(
            rule,
            path,
            "open('x')",
            "print(1)",
            "random.random()",
            "random.Random(1)",
            "sys.stdout.write('x')",
        )
        self.assert_right(
            rule, path, "def f(rng: random.Random): rng.random()", "sys.intern('x')"
        )

    def test_imports_follow_the_layers(self) -> None:
        """What is nearer to the core knows nothing of what is further away."""
        rule = layout.imports_follow_the_layers
        for path, snippet in (
            ("core/errors.py", "from .names import Name"),
            ("core/versions.py", "from .replica import Replica"),
            ("core/replica.py", "from .codec import Codec"),
            ("core/nobody.py", ""),
            ("storage/sqlite.py", "from ..node import Node"),
            ("node.py", "from .storage.sqlite import SqliteStorage"),
            ("node.py", "from twisted_kvs.web import client_api"),
            ("node.py", "def late():\n    from .tap import makeService"),
            ("client.py", "from .core.replica import Replica"),
            ("nobody.py", ""),
        ):
            self.assert_found(rule, f"twisted_kvs/{path}", snippet)
        for path, snippet in (
            ("core/versions.py", "from .errors import KVSError"),
            ("core/replica.py", "from .messages import Commit"),
            ("storage/sqlite.py", "from .api import Storage\nimport twisted"),
            ("node.py", "from .storage.api import Storage\nfrom . import cluster"),
            ("web/peer_api.py", "from ..node import Node\nfrom .errors import x"),
            ("tap.py", "from .web.peer_api import x\nfrom .storage import sqlite"),
        ):
            self.assert_right(rule, f"twisted_kvs/{path}", snippet)

    def test_imports_have_no_cycle(self) -> None:
        """A cycle is found through any number of modules, and named."""
        first = Source("twisted_kvs/a.py", "from .b import x")
        second = Source("twisted_kvs/b.py", "def f():\n    from . import c")
        third = Source("twisted_kvs/c.py", "import twisted_kvs.a")
        rule = layout.imports_have_no_cycle
        self.assertEqual(
            rule([first, second, third]),
            ["twisted_kvs.a -> twisted_kvs.b -> twisted_kvs.c -> twisted_kvs.a"],
        )
        self.assertEqual(rule([first, second]), [])

    def test_no_imports_for_type_checking_only(self) -> None:
        """An import of TYPE_CHECKING is found."""
        self.assert_found(
            layout.no_imports_for_type_checking_only,
            "twisted_kvs/node.py",
            "from typing import TYPE_CHECKING",
        )

    def test_libraries_stay_at_their_edge(self) -> None:
        """Klein is found outside web/, and treq where nobody asks peers."""
        rule = layout.libraries_stay_at_their_edge
        self.assert_found(
            rule,
            "twisted_kvs/node.py",
            "from klein import Klein",
            "import treq",
            "from treq.client import HTTPClient",
            "import sqlite3",
        )
        self.assert_right(rule, "twisted_kvs/web/peer_api.py", "import klein")

    def test_reactor_is_an_argument(self) -> None:
        """However the reactor is imported, it is found."""
        rule = layout.reactor_is_an_argument
        for path in ("twisted_kvs/node.py", "tests/test_node.py"):
            self.assert_found(
                rule,
                path,
                "from twisted.internet import reactor",
                "import twisted.internet.reactor",
                "from twisted.internet.task import react",
                "def late():\n    from twisted.internet import defer, reactor",
            )
        self.assert_right(
            rule, "twisted_kvs/tap.py", "from twisted.internet import reactor"
        )

    def test_packages_hold_docs_only(self) -> None:
        """Code and imports in an ``__init__.py`` are found."""
        rule = layout.packages_hold_docs_only
        path = "twisted_kvs/core/__init__.py"
        self.assert_found(rule, path, f"{DOC}from .view import View", f"{DOC}X = 1")
        self.assert_right(rule, path, f"{DOC}from __future__ import annotations")

    def test_no_state_of_modules(self) -> None:
        """What two replicas in one process would share is found."""
        rule = layout.no_state_of_modules
        path = "twisted_kvs/node.py"
        self.assert_found(
            rule,
            path,
            "_seen = {}",
            "seen: dict[str, int] = dict()",
            "names = [x for x in ()]",
            "pair = (1, {})",
            "made = f(x={})",
            "_LOCK = threading.Lock()",
            "NUMBERS = itertools.count()",
            "def f():\n    global seen\n    seen = 1",
            "ALL = []\ndef f():\n    ALL.append(1)",
            "ALL = {}\ndef f():\n    ALL[1] = 2",
            "@cache\ndef f(): pass",
            "@lru_cache(maxsize=None)\ndef f(): pass",
        )
        self.assert_right(
            rule,
            path,
            "EMPTY = {}\ndef f():\n    return EMPTY.get(1), EMPTY[1]",
            "Draw = Callable[[int], list[int]]",
            "ROWS = [1, 2]\n__all__ = ['f']\nName = NewType('Name', str)",
            "def f():\n    seen = {}\n    seen[1] = 2",
            "@lru_cache(maxsize=1024)\ndef f(): pass",
        )

    def test_names_are_not_banned(self) -> None:
        """A banned word is found within a name, in the plural, too."""
        rule = wording.names_are_not_banned
        self.assert_found(
            rule,
            "twisted_kvs/node.py",
            "class PeerManager: pass",
            "class KVSHandlers: pass",
            "class _Info: pass",
        )
        self.assert_found(rule, "twisted_kvs/peer_utils.py", "")
        self.assert_right(
            rule, "twisted_kvs/node.py", "class Database: pass", "class Utility: pass"
        )

    def test_functions_are_short(self) -> None:
        """A long body is found, long docs and comments are not."""
        rule = wording.functions_are_short
        path = "twisted_kvs/node.py"
        line, comment = "        x = 1\n", "        # why\n\n"
        most = wording.FUNCTION_LINES_MAX
        head = "class C:\n    async def f(self):\n"
        docs = '        """Doc.\n' + "more\n" * 99 + '        """\n'
        self.assert_found(rule, path, head + line * most)
        self.assert_right(
            rule,
            path,
            head + docs + (line + comment) * (wording.FUNCTION_LINES_MAX - 1),
        )

    def test_modules_are_short(self) -> None:
        """A module of one line too many is found."""
        rule, path = wording.modules_are_short, "tests/test_node.py"
        self.assert_found(rule, path, "\n" * (wording.MODULE_LINES_MAX + 1))
        self.assert_right(rule, path, "\n" * wording.MODULE_LINES_MAX)

    def test_parameters_are_few(self) -> None:
        """Six are found, by keyword or not; what Hypothesis draws is not counted."""
        rule, path = wording.parameters_are_few, "tests/test_node.py"
        self.assert_found(
            rule,
            path,
            "def _f(a, b, c, d, e, f): pass",
            "class C:\n    def __init__(self, a, b, c, d, e, f): pass",
            "class C:\n    @staticmethod\n    def f(a, b, c, d, e, f): pass",
        )
        self.assert_right(
            rule,
            path,
            "class C:\n    def f(self, a, b, *, c, d, e): pass",
            "class C:\n    def __init__(self, a, b, *, c, d, e, f): pass",
            "class C:\n    @given(x)\n    def test_f(self, a, b, c, d, e, f): pass",
            "@main.command()\ndef get(a, b, c, d, e, f): pass",
            "class C:\n    def spawnProcess(self, a, b, c, d, e, f): pass",
        )

    def test_parameters_past_two_have_keywords(self) -> None:
        """A third positional parameter of something public is found."""
        rule, path = wording.parameters_past_two_have_keywords, "twisted_kvs/node.py"
        self.assert_found(
            rule,
            path,
            "def f(a, b, c): pass",
            "class C:\n    def __init__(self, a, b, c): pass",
            "class C:\n    def f(self, a, b, /, c=1): pass",
            "def f(a: int, b: str, c: int): pass",
            "def f(a: int, b: str, c: bytes, d: float): pass",
        )
        self.assert_right(
            rule,
            path,
            "def f(a, b, *, c): pass",
            "def f(a, b, *more): pass",
            "def f(a: int, b: str, c: bytes): pass",
            "@implementer(IAgent)\nclass C:\n    def f(self, a, b, c, d): pass",
            "class C:\n    def f(self, a: int, b: str, c: bytes): pass",
            "def _f(a, b, c): pass",
            "class C:\n    def f(self, a, b): pass",
        )

    def test_todos_have_links(self) -> None:
        """A TODO without a link is found."""
        rule, path = wording.todos_have_links, "twisted_kvs/node.py"
        self.assert_found(rule, path, "x = 1  # TODO: later", "# FIXME")
        self.assert_right(
            rule, path, "# TODO https://example.com/issues/1", "x = 'TODO'"
        )

    def test_comments_are_sentences(self) -> None:
        """Commented-out code and banners are found, prose is not."""
        rule, path = wording.comments_are_sentences, "twisted_kvs/node.py"
        self.assert_found(
            rule,
            path,
            "# x = f(1)",
            "# return None",
            "# import os",
            "# node.perform(effects)",
            "# def f(x):",
            "# ----- part two -----",
            "x = 1  # ======",
        )
        self.assert_right(
            rule,
            path,
            "# Gossip (R19).",
            "# why: because it is so",
            "# first, then second",
            "# once",
            "x = '# x = 1'",
        )

    def test_silenced_findings_have_reasons(self) -> None:
        """A silenced finding without a reason is found."""
        rule, path = wording.silenced_findings_have_reasons, "twisted_kvs/node.py"
        silences = ("type: ignore[misc]", "noqa: E501", "noqa: E501, F401", "noqa")
        for silence in (*silences, "pragma: no cover"):
            self.assert_found(rule, path, f"x = 1  # {silence}")
            self.assert_right(rule, path, f"x = 1  # {silence}  # why it is")
        self.assert_right(rule, path, "x = 1  # noqa: E501 - why it is")

    def test_public_things_have_docstrings(self) -> None:
        """A public module, class, function or method without one is found."""
        rule, path = wording.public_things_have_docstrings, "twisted_kvs/node.py"
        klass = f'{DOC}class C({{base}}):\n    """Doc."""\n    def {{name}}(self): pass'
        self.assert_found(
            rule,
            path,
            "x = 1",
            f"{DOC}class C: pass",
            f"{DOC}def f(): pass",
            f"{DOC}async def f(): pass",
            klass.format(base="", name="f"),
            klass.format(base="", name="startService"),
            klass.format(base="Service", name="f"),
        )
        self.assert_right(
            rule,
            path,
            f"{DOC}def _f(): pass",
            f"{DOC}class _C:\n    def f(self): pass",
            klass.format(base="", name="_f"),
            klass.format(base="", name="__init__"),
            klass.format(base="Service", name="startService"),
            klass.format(base="Seam", name="f")
            + f'\nclass Seam(Protocol):\n    """Doc."""\n    def f(self): {DOC}',
        )

    def test_tests_say_what_they_promise(self) -> None:
        """A test without a sentence is found."""
        rule, path = testing.tests_say_what_they_promise, "tests/test_node.py"
        right = a_test()
        self.assert_found(
            rule,
            path,
            right.replace('"""It holds."""', ""),
            right.replace("holds.", ""),
        )
        self.assert_right(rule, path, right)

    def test_tests_are_not_coroutines(self) -> None:
        """A test that trial would create and never run is found."""
        rule, path = testing.tests_are_not_coroutines, "tests/test_node.py"
        self.assert_found(rule, path, a_test("async def"))
        self.assert_right(rule, path, a_test())

    def test_tests_return_nothing(self) -> None:
        """A Deferred that nobody waits for is found."""
        rule, path = testing.tests_return_nothing, "tests/test_node.py"
        draws = a_test(body="return x", decorator="@given(y)")
        self.assert_found(
            rule,
            path,
            a_test(body="return d"),
            a_test(body="yield d"),
            draws,
            draws.replace("SynchronousTestCase", "TestCase"),
        )
        self.assert_right(
            rule,
            path,
            a_test(),
            a_test(body="return"),
            a_test(body="f = lambda: [(yield)]"),
            a_test(body="return d").replace("SynchronousTestCase", "TestCase"),
        )

    def test_tests_pass_fakes(self) -> None:
        """A mock is found."""
        rule, path = testing.tests_pass_fakes, "tests/test_node.py"
        self.assert_found(
            rule,
            path,
            "from unittest.mock import patch",
            "from unittest import mock",
            "import unittest.mock",
        )
        self.assert_right(rule, path, "from unittest import skip")

    def test_tests_do_not_wait(self) -> None:
        """Sleeping, the wall clock and ports are found, but with real processes."""
        rule, path = testing.tests_do_not_wait, "tests/test_node.py"
        snippets = (
            "import time\ntime.sleep(1)",
            "import time as t\nt.time()",
            "from time import sleep as wait\nwait(1)",
            "from datetime import datetime\ndatetime.now()",
            "import socket",
            "from socket import create_connection",
        )
        self.assert_found(rule, path, *snippets)
        self.assert_right(rule, "tests/process/test_node.py", *snippets)
        self.assert_right(rule, path, "import time\nclock.sleep(1)\nself.time.time()")

    def test_machines_are_run(self) -> None:
        """A state machine of Hypothesis that no test runs is found."""
        rule, path = testing.machines_are_run, "tests/test_node.py"
        machine = "class Machine(RuleBasedStateMachine): pass\n"
        self.assert_found(
            rule, path, machine, f"{machine}MachineTests = Machine.TestCase\n"
        )
        self.assert_right(
            rule, path, machine + a_test(body="run_state_machine_as_test(Machine)")
        )

    def test_tables_name_no_module_twice(self) -> None:
        """A module has one row."""
        core = [name for row in tables.CORE_ROWS for name in row]
        self.assertEqual(len(core), len(set(core)))
        self.assertTrue(all(re.fullmatch(r"[a-z_]+", name) for name in core))
