"""
For a node that is process 1 of its container: what ends others ends it, too.

To process 1 the kernel gives no default action: a SIGTERM that comes before Twisted has
installed its own, while modules are loaded and the store is opened, would be lost, and
whoever sent it would wait and kill the node later.

It is loaded before everything else in the image (see Dockerfile), and imports next to
nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

EXIT_STATUS = 128 + signal.SIGTERM
"""What a shell tells of a process that ended by this signal."""


def die_of_signals_as_others(
    pid: int | None = None, *, exit_process: Callable[[int], object] = os._exit
) -> None:
    """
    End this process at once when SIGTERM comes, where it is process 1.

    Until something else takes the signal, as Twisted does when its reactor runs.
    Nothing is lost: what is not running has answered nobody.

    :param pid: whose process this is; absent: asked for.
    """
    first = (os.getpid() if pid is None else pid) == 1
    if first and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: exit_process(EXIT_STATUS))
