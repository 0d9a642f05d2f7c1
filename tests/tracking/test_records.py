"""Record files: exact, whole or not there, and honest about what they do not know."""

import json
import math
import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from maskdm.runtime.errors import MaskDMError
from maskdm.tracking.records import (
    Machine,
    Record,
    Stage,
    dvc_state,
    fold_records,
    git_state,
    hardware,
    read_record,
    read_records,
    record_path,
    write_record,
)

ROWS = [
    {"images_seen": 64, "train_flops": 1.5e9, "loss": 0.1 + 0.2},
    {"images_seen": 128, "train_flops": 3e9, "loss": 1},
]
RECORD = Record(
    stage="study",
    key="block90",
    arm="block90",
    identity="0123456789abcdef",
    params={"mask.ratio": 0.9, "lr": 2e-4, "override": None},
    data={"name": "digits", "sha256": "ab" * 32, "train": 1500, "heldout": 297, "shape": [1, 8, 8]},
    summary={"images_seen": 128, "heldout_loss": 1 / 3},
    history=ROWS,
)
MACHINE = Machine(
    started_at="2026-01-02T03:04:05+00:00",
    git={"commit": "c0ffee", "branch": "main", "dirty": False},
    dvc={"stage": "study@block90", "data_md5": "d" * 32 + ".dir"},
    hardware={"device": "cpu", "cores": 2},
    stage_seconds=2.5,
    images_per_second=51.2,
    peak_memory_bytes=None,
    seconds=[1.25, 2.5],
)


def test_records_come_back_exactly(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD, MACHINE)
    [(record, machine)] = read_records(tmp_path)
    assert record == RECORD
    assert machine is not None
    assert replace(machine, record_sha256="") == MACHINE
    assert type(record.summary["images_seen"]) is int


def test_equal_records_are_equal_bytes_whatever_the_order_of_their_keys(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD, MACHINE)
    first = record_path(tmp_path, "study", "block90").read_bytes()
    reordered = replace(RECORD, params=dict(reversed(RECORD.params.items())))
    write_record(tmp_path, reordered, replace(MACHINE, stage_seconds=9.0))
    assert record_path(tmp_path, "study", "block90").read_bytes() == first
    assert first.endswith(b"}\n")


def test_records_are_ordered_by_stage_then_key(tmp_path: Path) -> None:
    written: list[tuple[Stage, str]] = [("search", "a"), ("study", "b"), ("study", "a"), ("default", "c")]
    for stage, key in written:
        write_record(tmp_path, replace(RECORD, stage=stage, key=key), MACHINE)
    assert [(record.stage, record.key) for record, _ in read_records(tmp_path)] == [
        ("default", "c"),
        ("study", "a"),
        ("study", "b"),
        ("search", "a"),
    ]


def test_a_project_without_records_has_none(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []


def test_the_time_of_another_version_of_a_record_is_not_used(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD, MACHINE)
    path = record_path(tmp_path, "study", "block90")
    path.write_text(path.read_text().replace("0.0002", "0.0001"))
    [(record, machine)] = read_records(tmp_path)
    assert record.params["lr"] == 0.0001
    assert machine is None


@pytest.mark.parametrize("name", ["block90.json", "block90.machine.json"])
@pytest.mark.parametrize("content", ['{"stage": "stu', "{}", '["a list"]', ""])
def test_a_corrupt_file_is_named_in_one_line(tmp_path: Path, name: str, content: str) -> None:
    write_record(tmp_path, RECORD, MACHINE)
    (tmp_path / "records" / "study" / name).write_text(content)
    with pytest.raises(MaskDMError, match=name) as caught:
        read_records(tmp_path)
    assert "\n" not in str(caught.value)


def test_timings_that_do_not_fit_the_history_are_named(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD, replace(MACHINE, seconds=[1.0]))
    with pytest.raises(MaskDMError, match=r"block90\.machine\.json: 1 timings; allowed: 2"):
        read_records(tmp_path)


def test_a_value_that_is_not_finite_is_rejected_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(MaskDMError, match=r"block90\.json.*NaN"):
        write_record(tmp_path, replace(RECORD, summary={"kid": math.nan}), MACHINE)
    assert read_records(tmp_path) == []


def test_a_full_disk_leaves_the_old_record_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(tmp_path, RECORD, MACHINE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(MaskDMError, match=r"block90\..*json: .*No space left"):
        write_record(tmp_path, replace(RECORD, identity="new"), MACHINE)
    assert [record for record, _ in read_records(tmp_path)] == [RECORD]
    assert not list(tmp_path.rglob("*.tmp"))


# --- facts about the checkout and the machine ---------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with one commit of `code.py`, on the branch `trunk`."""
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "--message=first")
    return tmp_path


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_clean_checkout_is_described(checkout: Path) -> None:
    assert git_state(checkout) == {"commit": git(checkout, "rev-parse", "HEAD"), "branch": "trunk", "dirty": False}


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        ("code.py", True),
        ("new.py", True),
        ("records/study/a.json", False),
        ("reports/report.md", False),
        ("dvc.lock", False),
        ("maskdm/records/new.py", True),
    ],
)
def test_only_what_a_run_does_not_write_itself_is_dirty(checkout: Path, path: str, dirty: bool) -> None:
    (checkout / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout / path).write_text("2\n")
    assert git_state(checkout)["dirty"] is dirty


def test_a_detached_head_has_no_branch(checkout: Path) -> None:
    git(checkout, "checkout", "--quiet", "--detach")
    assert git_state(checkout)["branch"] is None
    assert git_state(checkout)["commit"]


def test_without_a_checkout_or_git_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = {"commit": None, "branch": None, "dirty": None}
    assert git_state(tmp_path) == unknown
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) == unknown


def test_the_hash_of_the_data_is_read_from_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "finetune@block90")
    (tmp_path / "dvc.lock").write_text(
        json.dumps(  # JSON is YAML
            {
                "schema": "2.0",
                "stages": {
                    "reference": {"outs": [{"path": "data/reference", "md5": "wrong"}]},
                    "prepare": {
                        "outs": [{"path": "log", "md5": "wrong"}, {"path": "data/prepared", "md5": "1234.dir"}]
                    },
                },
            }
        )
    )
    assert dvc_state(tmp_path) == {"stage": "finetune@block90", "data_md5": "1234.dir"}


@pytest.mark.parametrize("content", [None, "", "stages: {}", "stages: [", "just text"])
def test_without_a_usable_lock_no_hash_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    if content is not None:
        (tmp_path / "dvc.lock").write_text(content)
    assert dvc_state(tmp_path) == {"stage": None, "data_md5": None}


def test_the_hardware_can_be_written_to_a_record() -> None:
    found = hardware(torch.device("cpu"), 2)
    assert json.loads(json.dumps(found)) == found
    assert found["device"] == "cpu"
    assert found["processes"] == 2
    assert found["precision"] == "float32"
    assert found["torch"] == str(torch.__version__)
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)


# --- one file a comparison ----------------------------------------------------------------------------------


def write_trials(root: Path, *keys: str) -> None:
    for key in keys:
        write_record(root, replace(RECORD, stage="study", key=key), MACHINE)


def test_the_trials_of_a_comparison_become_one_file_and_come_back_exactly(tmp_path: Path) -> None:
    write_trials(tmp_path, "masks/b-1", "masks/a-1", "masks/old-1", "curves/a-1")
    before = read_records(tmp_path)
    fold_records(tmp_path, "study", "masks", keep={"masks/a-1", "masks/b-1"})
    after = read_records(tmp_path)
    assert after == [pair for pair in before if pair[0].key != "masks/old-1"]
    assert read_record(tmp_path, "study", "masks/b-1") == after[-1]
    assert read_record(tmp_path, "study", "masks/old-1") is None
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json*")}
    assert files == {f"records/study/{name}" for name in ("masks.jsonl", "curves/a-1.json", "curves/a-1.machine.json")}
    content = (tmp_path / "records" / "study" / "masks.jsonl").read_bytes()
    fold_records(tmp_path, "study", "masks", keep={"masks/a-1", "masks/b-1"})
    assert (tmp_path / "records" / "study" / "masks.jsonl").read_bytes() == content


def test_a_trial_that_is_done_again_replaces_its_line(tmp_path: Path) -> None:
    write_trials(tmp_path, "masks/a-1", "masks/b-1")
    fold_records(tmp_path, "study", "masks", keep={"masks/a-1", "masks/b-1"})
    again = replace(RECORD, stage="study", key="masks/a-1", identity="another")
    write_record(tmp_path, again, MACHINE)
    assert [record.identity for record, _ in read_records(tmp_path)] == ["another", RECORD.identity]
    fold_records(tmp_path, "study", "masks", keep={"masks/a-1", "masks/b-1"})
    assert read_record(tmp_path, "study", "masks/a-1") == (again, read_records(tmp_path)[0][1])


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    write_trials(tmp_path, "masks/a-1", "masks/b-1")
    fold_records(tmp_path, "study", "masks", keep={"masks/a-1", "masks/b-1"})
    path = tmp_path / "records" / "study" / "masks.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        MaskDMError, match=r"masks.jsonl: line 2: not a valid record: .*; restore it with git, or delete"
    ):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("trials", "says"),
    [
        (
            [("study", "masks/a-1"), ("study", "curves/a-1")],
            "line 2: a record of study: curves/a-1; allowed: of study: ",
        ),
        ([("study", "masks/deep/a-1")], "line 1: a record of study: masks/deep/a-1; allowed: of study: masks/...; "),
        ([("study", "a-1")], "line 1: a record of study: a-1; allowed: of study: masks/..."),
        ([("search", "masks/a-1")], "line 1: a record of search: masks/a-1; allowed: of study: masks/..."),
        ([("study", "masks/a-1"), ("study", "masks/b-1"), ("study", "masks/a-1")], "line 3: masks/a-1 is there twice"),
    ],
)
def test_records_of_two_comparisons_with_one_name_are_refused(
    tmp_path: Path, trials: list[tuple[Stage, str]], says: str
) -> None:
    lines = [{"record": asdict(replace(RECORD, stage=stage, key=key)), "machine": None} for stage, key in trials]
    path = tmp_path / "records" / "study" / "masks.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for read in (read_records, lambda root: read_record(root, "study", "masks/a-1")):
        with pytest.raises(MaskDMError) as caught:
            read(tmp_path)
        assert str(caught.value).startswith(f"{path}: {says}")
        assert "; restore the file with git, or delete the line" in str(caught.value)
        assert "\n" not in str(caught.value)
