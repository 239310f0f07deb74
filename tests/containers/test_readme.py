"""What the README tells users to paste, from the first node to a cut network."""

from __future__ import annotations

import random
import re

from tests.process.harness import PROJECT

from .docker import IMAGE, OURS, PREFIX, command
from .harness import ContainerCase

PART = re.compile(r"<!-- pasted by [^>]*-->\n(.*)<!-- pasted up to here -->", re.DOTALL)
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class ReadmeTests(ContainerCase):
    """Its commands do what it says."""

    def test_from_the_first_node_to_a_cut_network(self) -> None:
        """Pasted in one go: both sides write, then all show the same."""
        readme = (PROJECT / "README.md").read_text("utf-8")
        [part] = PART.findall(readme)
        blocks = [self.rename(block) for block in BLOCK.findall(part)]
        self.assertEqual(len(blocks), 4)
        script = "\necho ---\n".join(["set -euo pipefail", *blocks])
        _, _, cut, healed, _ = command("bash", "-c", script).split("---\n")
        self.assertRegex(cut, r'(?s)replaced\n.*\}blue\n.*"value":"red"')
        self.assertEqual(re.findall(r'"value":"(\w+)"', healed), ["red"] * 4)

    def rename(self, text: str) -> str:
        """Use names, addresses and ports that nobody else has."""
        for old, new in self.names:
            text = re.sub(old, new, text, flags=re.MULTILINE)
        return text

    def setUp(self) -> None:
        """Draw what names and addresses are replaced by."""
        super().setUp()
        net = f"10.{random.randrange(64, 250)}.{random.randrange(256)}."
        address = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.1:"
        self.names = [
            (r"\bkvs([1-4])\b", rf"{PREFIX}-kvs\1"),
            (r"\bmynet\b", f"{PREFIX}-mynet"),
            (r"\b10\.0\.0\.", net),
            (r"127\.0\.0\.1:", address),
            (r"-p (?=\d+:)", f"-p {address}"),
            (r"(?<= )twisted-kvs$", IMAGE),
            (r"^docker (run|network create)\b", rf"docker \1 {' '.join(OURS)}"),
        ]
