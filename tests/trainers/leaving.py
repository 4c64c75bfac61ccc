"""Leave a program of several processes without tearing PyTorch's process group down.

A thread of the group (gloo) that lets go of its last work while the interpreter ends needs the interpreter's lock: on a busy machine the
process then aborts ("terminate called without an active exception"), or, where the group is destroyed first, hangs. Both were seen once.
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
