"""Hostile records: whatever they hold is compared, or refused in one line that names the file."""

import json
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from maskdm.reporting.pairs import compare_runs, expect, find_runs
from maskdm.tracking.records import Machine, Record, read_record, read_records, read_step_times
from tests.fuzz.harness import amounts, answer_of, changed_bytes, changed_tree, fuzz, randoms

ROWS = [{"images_seen": 64 * n, "train_flops": 1e9 * n, "loss": 1 / n, "heldout_loss": 1 / n} for n in (1, 2, 3)]
SUMMARY = {"images_seen": 192, "train_flops": 3e9, "heldout_loss": 0.3, "fid": 12.5, "kid": 0.01, "precision": 0.5}
PARAMS = {"seed": 0, "lr": 2e-4, "override": None}
DATA = {"name": "digits", "sha256": "ab" * 32, "train": 1500, "heldout": 297, "shape": [1, 8, 8]}


def record(arm: str, seed: int) -> dict[str, Any]:
    params = PARAMS | {"seed": seed}
    return asdict(Record("default", f"{arm}/{seed}", arm, "0123456789abcdef", params, DATA, SUMMARY, list(ROWS)))


MACHINE = asdict(
    Machine(
        started_at="2026-01-02T03:04:05+00:00",
        git={"commit": "c0ffee", "branch": "main", "dirty": False},
        dvc={"stage": "evaluate", "data_md5": "d" * 32 + ".dir"},
        hardware={"device": "cpu", "cores": 2, "cpu": "x", "processes": 1},
        stage_seconds=2.5,
        images_per_second=51.2,
        peak_memory_bytes=None,
        seconds=[1.0, 2.0, 3.0],
    )
)
STEP_TIMES = {
    "started_at": "2026-01-02T03:04:05+00:00",
    "git": {"commit": None, "branch": None, "dirty": None},
    "hardware": MACHINE["hardware"],
    "seconds": {"scratch": [0.1]},
    "spread": 0.1,
}


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def hostile_json(tree: Any, random: Random) -> bytes:
    if random.random() < 0.75:
        try:
            return json.dumps(changed_tree(tree, random)).encode()
        except (RecursionError, ValueError, TypeError):  # what JSON cannot write
            pass
    if random.random() < 0.1:
        return random.choice(["[" * 100_000, '{"a":' * 100_000, "1" * 100_000, "1e999", '"\\ud800"']).encode()
    return changed_bytes(json.dumps(tree).encode(), random)


@amounts(1200)
def test_records(examples: int, tmp_path: Path) -> None:
    folder = tmp_path / "records" / "default"
    (folder / "scratch").mkdir(parents=True)
    (folder / "patch").mkdir()
    for arm in ("scratch", "patch"):
        for seed in (0, 1):
            (folder / arm / f"{seed}.json").write_text(json.dumps(record(arm, seed)))
    own, timing, lines = folder / "patch" / "0.json", folder / "patch" / "0.machine.json", folder / "patch.jsonl"
    usual = own.read_bytes()

    def use() -> None:
        read_records(tmp_path)
        read_record(tmp_path, "default", "patch/0")
        patch, scratch = (find_runs(name, tmp_path, tmp_path) for name in ("patch", "scratch"))
        compare_runs(patch, scratch)
        expect(list(scratch.values()), next(iter(patch.values())))

    def check(random: Random) -> str:
        match random.randrange(6):
            case 0:
                timing.write_bytes(hostile_json(MACHINE, random))
            case 1:
                folded = [{"record": record("patch", seed), "machine": MACHINE} for seed in (0, 1)]
                text = [
                    hostile_json(line, random) if random.random() < 0.5 else json.dumps(line).encode()
                    for line in folded
                ]
                lines.write_bytes(b"\n".join(text))
                own.unlink()
            case _:
                own.write_bytes(hostile_json(record("patch", 0), random))
        try:
            return answer_of(use)
        finally:
            own.write_bytes(usual)
            timing.unlink(missing_ok=True)
            lines.unlink(missing_ok=True)

    fuzz(examples, "records", randoms(), check)


@amounts(100, few=2)
def test_step_times(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "step_time.json"

    def use() -> None:
        times = read_step_times(path)
        times.of("scratch", 0)
        assert times.machine

    def check(random: Random) -> str:
        path.write_bytes(hostile_json(STEP_TIMES, random))
        return answer_of(use)

    fuzz(examples, "step times", randoms(), check)
