"""Recorded trials are known by `NUMERICS`, not by hashes of the code: numbers must not move while it stays."""

import json
from pathlib import Path

import pytest

from maskdm.numerics import NUMERICS
from tests import golden

TOLERANCE = 1e-3  # other CPUs and numbers of threads change Muon's bfloat16 and the KID of few samples by up to 5e-4
EXPECTED = json.loads(golden.FILE.read_text(encoding="utf-8"))


def test_the_recorded_numbers_are_those_of_this_version() -> None:
    assert EXPECTED["numerics"] == NUMERICS, "NUMERICS was raised: `python -m tests.golden` records its numbers"
    assert EXPECTED["numbers"].keys() == golden.CASES.keys()


@pytest.mark.parametrize("name", golden.CASES)
def test_numbers_do_not_move_while_the_version_stays(name: str, tmp_path: Path) -> None:
    numbers, _ = golden.measure(name, tmp_path)
    moved = {
        key: (value, numbers[key])
        for key, value in EXPECTED["numbers"][name].items()
        if numbers[key] != pytest.approx(value, rel=TOLERANCE, abs=1e-7)
    }
    assert not moved, "numbers have moved: raise NUMERICS and run `python -m tests.golden`, or undo the change"
