"""Eight writers at once, on real stores and servers that are killed on the way: nothing is lost, nothing doubled."""

from pathlib import Path

import pytest

from tests.load import search_on_a_server, track_in_a_file, track_on_a_server

pytestmark = pytest.mark.slow
WRITERS = 8


def test_writers_share_one_file(tmp_path: Path) -> None:
    assert not track_in_a_file(tmp_path, WRITERS, rows=20, pause=0.1)


def test_writers_on_several_machines_share_a_server_that_is_killed(tmp_path: Path) -> None:
    assert not track_on_a_server(tmp_path, WRITERS, rows=40, pause=0.5, kills=2)


def test_workers_share_a_study_whose_server_is_killed_and_one_of_whom_dies(tmp_path: Path) -> None:
    assert not search_on_a_server(tmp_path, WRITERS, trials=32, pause=0.5, kills=2)
