"""Deliberate faults (`make mutants`) belong to the code as it is: one whose text is gone would plant nothing."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


def test_every_fault_has_its_place_in_the_code(root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "mutants"))
        before = set(sys.modules)
        faults = importlib.import_module("faults").FAULTS
        for name in set(sys.modules) - before:
            sys.modules.pop(name)
    assert len({fault.name for fault in faults}) == len(faults) > 150
    gone = [fault.name for fault in faults if (root / fault.file).read_text().count(fault.old) != 1]
    assert gone == []
    named = {test.partition("::")[0] for fault in faults for test in fault.tests}
    assert [test for test in sorted(named) if not (root / test).exists()] == []
