"""The lock files of the image fit what the project says that it needs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from twisted.trial.unittest import SynchronousTestCase

PROJECT = Path(__file__).parent.parent
RUNTIME = PROJECT / "deploy" / "requirements.lock"
BUILD = PROJECT / "deploy" / "build.lock"
ENTRY = re.compile(r"([a-z0-9].*?)(?: --hash=sha256:[0-9a-f]{64})+")


def logical_lines(text: str) -> list[str]:
    """Split a lock file into its entries, without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip()]


def read_lock(text: str) -> dict[str, str]:
    """
    Read which release of each distribution is locked.

    :raises ValueError: for a line that is anything but one release and its hashes.
    """
    found: dict[str, str] = {}
    for line in logical_lines(text):
        entry = ENTRY.fullmatch(line)
        requirement = Requirement(entry[1]) if entry else None
        operators = (
            [one.operator for one in requirement.specifier] if requirement else []
        )
        if requirement is None or operators != ["=="]:
            raise ValueError(f"no release with hashes: {line[:80]}")
        [pin] = requirement.specifier
        found[canonicalize_name(requirement.name)] = pin.version
    return found


def unmet(requirements: Iterable[str], locked: dict[str, str]) -> list[str]:
    """List the requirements that what is locked does not satisfy."""
    wanted = map(Requirement, requirements)
    return [
        f"{one}: locked is {locked.get(canonicalize_name(one.name), 'none')}"
        for one in wanted
        if not one.specifier.contains(locked.get(canonicalize_name(one.name), "0"))
    ]


def runtime_requirements() -> list[str]:
    """Read what setup.cfg says that the package needs."""
    config = ConfigParser()
    config.read(PROJECT / "setup.cfg", "utf-8")
    lines = config["options"]["install_requires"].splitlines()
    return [line for line in lines if line and not line.startswith("#")]


class LockTests(SynchronousTestCase):
    """What goes into the image is what the tests allow; deploy/lock.sh mends it."""

    def test_runtime_satisfies_every_range(self) -> None:
        """Each requirement of setup.cfg is locked, in a release within its range."""
        wanted = runtime_requirements()
        self.assertLess(5, len(wanted))
        self.assertEqual(unmet(wanted, read_lock(RUNTIME.read_text("utf-8"))), [])

    def test_build_satisfies_pyproject(self) -> None:
        """So is what builds the wheel."""
        project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
        wanted = project["build-system"]["requires"]
        self.assertEqual(unmet(wanted, read_lock(BUILD.read_text("utf-8"))), [])

    def test_no_index_is_named(self) -> None:
        """The locks say what, and never from where."""
        for path in (RUNTIME, BUILD):
            self.assertNotRegex(
                path.read_text("utf-8"), r"://|--index|--find|--trusted"
            )

    def test_misfits_are_found(self) -> None:
        """What is missing, or out of its range, is named."""
        locked = {"klein": "24.8.0", "treq": "24.1"}
        found = unmet(["Klein >=24.8, <28", "treq >=24.9", "click >=8"], locked)
        self.assertEqual(
            [line.split()[0] for line in found], ["treq>=24.9:", "click>=8:"]
        )

    def test_only_releases_with_hashes_are_read(self) -> None:
        """A range, an address or a release without hashes is no lock."""
        digest = f"--hash=sha256:{'0' * 64}"
        good = f"a-b==1.0 ; python_version < '4' \\\n    {digest} \\\n    {digest}\n# x"
        self.assertEqual(read_lock(good), {"a-b": "1.0"})
        for bad in ("a==1.0", f"a>=1.0 {digest}", f"a @ file:///a {digest}", digest):
            with self.assertRaises(ValueError):
                read_lock(bad)
