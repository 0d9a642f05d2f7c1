"""The README's three commands: from a folder of images to the page, as somebody does it who has just come."""

import json
import re
from pathlib import Path

import pytest

from tests.datasets.test_survey import pictures
from tests.raw_data import place
from tests.workspace import command, make_workspace

HOURS = 0.1  # small images and the smallest network need half of it on a quiet core


@pytest.mark.slow
def test_three_commands_lead_from_a_folder_to_an_answer(tmp_path: Path) -> None:
    project, images = tmp_path / "suite", tmp_path / "my photos"
    make_workspace(project, "smoke")
    place(images, pictures(300, size=(12, 10)))
    made = command(project, "maskdm", "init", str(images), "--image-size", "8", "--hours", str(HOURS), "--json")
    proposal = json.loads(made[made.index("{") :])
    assert proposal["seconds"] <= 3600 * HOURS
    command(project, "dvc", "repro", timeout=3000)
    report = (project / "reports" / "report.md").read_text(encoding="utf-8")
    assert re.search(r"\*\*On my photos at .+FLOPs ", report)
    shown = command(project / "profiles", "maskdm", "open", DISPLAY="", WAYLAND_DISPLAY="")
    assert "reports/index.html" in shown
    assert "my photos" in (project / "reports" / "index.html").read_text(encoding="utf-8")
    assert "up to date" in command(project, "dvc", "repro")
