"""`memweave` and `python -m memweave`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    # Read when torch is first imported. Threads that spin while they wait make small models 20 times slower as soon as
    # another process is busy; waiting costs nothing measurable otherwise (docs/training.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from memweave.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # pressed while modules were loading
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
