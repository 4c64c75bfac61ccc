"""Leave a program of several processes without tearing PyTorch's process group down.

gloo's worker thread lets go of the last collective's tensors when it gets round to it, and needs the interpreter's lock for that. A process
that ends before is aborted ("terminate called without an active exception"); one that destroys the group holds the lock while it waits for
that thread, for ever (seen with gdb: ~Reducer, ~ProcessGroupGloo, join; ~AsyncAllgatherWork, decref_pyobject, take_gil). PyTorch 2.13.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

LONGEST = 300
"""Seconds after which a process that hangs says where, and ends."""


def run_and_leave(main: Callable[[], None]) -> NoReturn:
    """Call `main` and end the process at once, with 1 after an error, which is printed."""
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    code = 0
    try:
        main()
    except BaseException:  # whatever it is, it is told
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
