"""All benchmarks, one after the other: `python -m bench`, or `python -m bench search remember` for some.

Exits with 1 when a bar is missed. See README.md in this folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = (
    "import",
    "search",
    "bank",
    "remember",
    "agemem",
    "cases",
    "case_q",
    "strategies",
    "loop_lag",
    "capture",
    "rows",
    "merging",
    "step_time",
    "local",
    "serving",
)


def missed() -> list[str]:
    """Return the measurements among all results that miss their bar."""
    out = []
    for path in sorted((FOLDER / "results").glob("*.json")):
        for row in json.loads(path.read_text())["rows"]:
            if row["met"] is False:
                out.append(f"{path.stem}: {row['what']} {row['value']:.3g} {row['unit']}, bar {row['bar']}")
    return out


def main() -> int:
    """Run the benchmarks named on the command line, or all."""
    wanted = sys.argv[1:] or list(NAMES)
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    # The Makefile sets PYTHONSAFEPATH, under which a script does not see the files beside it.
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    for name in wanted:
        subprocess.run([sys.executable, str(FOLDER / f"bench_{name}.py")], check=True, env=environment)
    for line in (found := missed()):
        print(f"MISSED  {line}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
