"""Check what is in a wheel: ``check_wheel.py FILE``."""

from __future__ import annotations

import sys
import zipfile

WANTED = {
    "twisted/plugins/kvs_plugin.py",
    "twisted_kvs/__init__.py",
    "twisted_kvs/core/__init__.py",
    "twisted_kvs/py.typed",
    "twisted_kvs/tap.py",
}
# With one of these our wheel would overwrite Twisted's own files.
BANNED = {"twisted/__init__.py", "twisted/plugins/__init__.py"}


def main() -> int:
    """Name what is missing or too much; 0 if nothing is."""
    names = set(zipfile.ZipFile(sys.argv[1]).namelist())
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    faults = [f"missing: {name}" for name in sorted(WANTED - names)]
    faults += [f"must not be there: {name}" for name in sorted(BANNED & names)]
    faults += [f"stray: {top}" for top in sorted(tops - {"twisted", "twisted_kvs"})]
    print("\n".join(faults) or f"{len(names)} files, as they should be")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
