"""What workers report, and the bar that shows all of them."""

import re
from pathlib import Path

import pytest

from maskdm.runtime import progress
from maskdm.runtime.progress import Reporter, Status, Work, WorkBar, read_status


def test_a_report_is_read_as_it_was_written_and_written_twice_a_second_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status"
    assert read_status(path) is None
    monkeypatch.setenv(progress.STATUS, str(path))
    reporter = Reporter()
    reporter.report(Status(3e9, 64, 0.5))
    reporter.report(Status(4e9, 96, 0.4))  # too soon
    assert read_status(path) == Status(3e9, 64, 0.5)
    path.write_text("{")
    assert read_status(path) is None


def test_nothing_is_reported_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(progress.STATUS, raising=False)
    assert not Reporter().is_due


def test_the_bar_counts_what_was_done_before_what_is_done_and_what_is_under_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "bar_interval", lambda: 0.0)
    bar = WorkBar("finetune crops", Work([30.0, 30.0], before=20.0, after=20.0, start=10.0))
    bar.show({0: Status(25.0, 100, 0.2), 1: Status(10.0, 0, 0.4)})
    bar.finish(0)
    bar.show({1: Status(90.0)})  # never more than its size
    bar.close()
    shares = [int(share) for share in re.findall(r"(\d+)%", capsys.readouterr().err)]
    assert shares[0] == 20
    assert shares[1] == 35
    assert shares[-1] == 80
