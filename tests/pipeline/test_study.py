"""The study's stages through their real entry points, at toy scale."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from maskdm.config.study import load_study
from maskdm.tracking.records import read_records, read_step_times
from tests.conftest import MODELS, PARAMS
from tests.imports import PROJECT
from tests.workspace import make_prepared, refusal, stage, write_yaml

MASKED = {"mask": {"strategy": "patch", "ratio": 0.75}, "share": 0.25, "batch_size": 16}
DENSE = {"batch_size": 8}
FIRST: dict[str, Any] = {
    "question": "Does it pay?",
    "paper": "it does.",
    "seeds": [1, 2],
    "budget": {"train_flops": 4e9, "snapshots": [0.5, 1.0]},
    "heldout": {"images": 32, "points": 4},
    "baseline": "scratch",
    "controls": {},
    "arms": {"scratch": [DENSE], "patches": [MASKED, DENSE]},
}
UNTOLD = [MASKED | {"positions": False}, DENSE]
SECOND = FIRST | {"question": "And without positions?", "arms": {"base": [DENSE], "untold": UNTOLD}}


def write_study(folder: Path, **parts: Any) -> None:
    write_blocks(folder, {"parts": parts})


def write_blocks(folder: Path, blocks: dict[str, Any]) -> None:
    write_yaml(folder / "study" / "params.yaml", blocks)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the first of two parts has been run."""
    folder = tmp_path_factory.mktemp("study")
    make_prepared(folder)
    write_study(folder, first=FIRST, second=SECOND | {"baseline": "base"})
    stage(folder, "study", "first", "--workers", "2")
    return folder


def test_every_arm_has_a_record_for_every_seed_at_equal_compute(project: Path) -> None:
    records = [record for record, _ in read_records(project, ("study",)) if record.key.startswith("first/")]
    assert {record.key for record in records} == {f"first/{arm}-{seed}" for arm in FIRST["arms"] for seed in (1, 2)}
    for record in records:
        assert record.summary["train_flops"] == pytest.approx(4e9, rel=0.0025)
        assert len([row for row in record.history if "fd_effnet_lite0" in row]) == 2


def test_parts_share_trials_and_a_finished_part_trains_nothing(project: Path) -> None:
    before = {path: path.read_bytes() for path in (project / "records" / "study").rglob("*.json*")}
    assert {path.name for path in before} == {"first.jsonl"}
    stage(project, "study", "first")
    assert {path: path.read_bytes() for path in (project / "records" / "study").rglob("*.json*")} == before

    stage(project, "study", "second", "--workers", "2")  # its `base` is the first part's `scratch`
    by_key = {record.key: record for record, _ in read_records(project, ("study",))}
    for seed in (1, 2):
        assert by_key[f"second/base-{seed}"].identity == by_key[f"first/scratch-{seed}"].identity
        assert by_key[f"second/base-{seed}"].history == by_key[f"first/scratch-{seed}"].history
        assert by_key[f"second/base-{seed}"].arm == "base"
        assert by_key[f"second/untold-{seed}"].history != by_key[f"first/patches-{seed}"].history


@pytest.mark.slow
def test_a_part_may_have_another_network_recipe_and_sampler(project: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(project, tmp_path / "project")
    shutil.copy(PROJECT / "profiles" / "recipes" / "flow.yaml", folder / "profiles" / "recipes")
    sampling = {"sampler": "heun", "num_inference_steps": 4, "eta": 0.0, "batch_size": 16}
    own = {"recipe": "flow", "model": MODELS["dit"], "sampling": sampling, "seeds": [1]}
    write_study(folder, other=FIRST | own)
    stage(folder, "study", "other", "--workers", "2")
    found = [record for record, _ in read_records(folder, ("study",)) if record.key.startswith("other/")]
    assert {record.arm for record in found} == {"scratch", "patches"}
    for record in found:
        assert (record.params["model.name"], record.params["objective"]) == ("dit", "flow")
        assert record.history[-1]["sampler"] == "heun"
    write_study(folder, other=FIRST | own | {"sampling": None})
    error = refusal(folder, "study", "other")
    assert re.search(r"sampling\.sampler=\w+ with objective=flow; allowed: euler, heun", error)


@pytest.mark.slow
def test_a_part_may_have_another_data_set_and_its_phases_too(project: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(project, tmp_path / "project")
    data = PARAMS["data"] | {"holdout": 40}
    nines = {
        "data": data | {"classes": ["9"]},
        "reference": 100,
        "others": {
            "few": data | {"classes": ["9"], "train_images": 50},
            "rest": data | {"classes": [str(digit) for digit in range(9)]},
        },
    }
    arms = {"scratch": [DENSE | {"set": "few"}], "before": [MASKED | {"set": "rest"}, DENSE | {"set": "few"}]}
    part = FIRST | {"set": "nines", "seeds": [1], "arms": arms}
    write_blocks(folder, {"sets": {"nines": nines}, "parts": {}, "set_parts": {"transfer": part}})
    error = stage(folder, "prepare", "--set", "fw", expect=2)
    assert error == "error: --set fw: allowed: nines\n"
    for of_set, module, place in (("set", "prepare", "prepared/own"), ("set_reference", "reference", "reference")):
        error = stage(folder, "study", "transfer", expect=2)
        remedy = f"make it with `dvc repro study/dvc.yaml:{of_set}@nines`"
        assert error == f"error: data/sets/nines/{place}: no such folder; {remedy}\n"
        stage(folder, module, "--set", "nines")
    assert json.loads((folder / "records" / "reference-nines.json").read_text())["reference_images"] == 100
    stage(folder, "study", "transfer")
    found = {record.arm: record for record, _ in read_records(folder, ("study",)) if record.key.startswith("transfer/")}
    assert found["scratch"].data["train"] == 140  # 180 nines, of which 40 are held out
    assert {arm: record.history[-1]["reference"] for arm, record in found.items()} == {"scratch": 100, "before": 100}
    assert found["scratch"].identity != found["before"].identity


def test_the_report_answers_what_was_run_and_names_what_was_not(project: Path) -> None:
    parts = load_study(project / "study" / "params.yaml").parts
    write_study(project, **{name: part.model_dump(mode="json") for name, part in parts.items()}, third=FIRST)
    error = stage(project, "report", "--study", expect=2)
    assert error == "error: records/study_step_time.json: no such file; the stage `step_time` writes it\n"
    stage(project, "step_time", "--study")
    times = read_step_times(project / "records" / "study_step_time.json")
    phases = {arm: len(seconds) for arm, seconds in times.seconds.items()}
    assert phases == {
        **{"first/scratch": 1, "first/patches": 2, "second/base": 1, "second/untold": 2},
        **{"third/scratch": 1, "third/patches": 2},
    }
    assert times.seconds["first/scratch"] == times.seconds["second/base"]  # the same step, timed once
    stage(project, "report", "--study")
    text = (project / "reports" / "study.md").read_text()
    assert "## Does it pay?" in text
    assert re.search(r"\| And without positions\? +\| +digits \| +4 GFLOPs \| +`untold` \| .* \| +2 \|", text)
    assert "python -m pipeline.study third" in text
    table = pd.read_csv(project / "reports" / "study" / "trials.csv")
    assert len(table) == 8
    table = table[table["comparison"] == "first"]
    steps = {record.key: record.history[-3]["step"] for record, _ in read_records(project, ("study",))}
    (seconds,) = times.seconds["first/scratch"]
    scratch = table[table["arm"] == "scratch"]
    assert scratch["train_seconds"].tolist() == pytest.approx([seconds * steps[f"first/scratch-{s}"] for s in (1, 2)])
    assert (project / "reports" / "study" / "first_curves.png").is_file()


@pytest.mark.slow
def test_the_throughput_of_every_mask_is_measured(project: Path) -> None:
    write_study(project, masks=FIRST)
    stage(project, "step_time", "--study")
    stage(project, "throughput")
    table = pd.read_csv(project / "reports" / "study" / "throughput.csv").set_index("arm")
    assert set(table.index) == {"scratch", "patches"}
    assert table["visible_tokens"].to_dict() == {"scratch": 16, "patches": 4}
    # How fast this machine was just now is no property to hold: what the columns say of one another is.
    assert (table[["images_per_second", "of_flop_ideal", "memory_bytes"]] > 0).all(axis=None)
    assert table.loc["scratch", "of_flop_ideal"] == 1
    seconds = read_step_times(project / "records" / "study_step_time.json").seconds["masks/patches"][0]
    assert table.loc["patches", "images_per_second"] == pytest.approx(16 / seconds)
    tokens_per_image = table["tokens_per_second"] / table["images_per_second"]
    assert tokens_per_image.tolist() == pytest.approx(table["visible_tokens"].tolist(), rel=1e-4)
    flops_per_image = table["flops_per_second"] / table["images_per_second"]
    assert flops_per_image["patches"] < 0.5 * flops_per_image["scratch"]  # a quarter of the tokens, and the rest


@pytest.mark.parametrize(
    ("arguments", "changes", "says"),
    [
        (
            ["first"],
            {"controls": {"scratch": "base"}},
            "study/params.yaml: parts.first: controls: base; allowed: a key",
        ),
        (["other"], {}, "other: allowed: one of first"),
        (["first", "--workers", "0"], {}, "--workers=0; allowed"),
        (["first"], {"baseline": "none"}, "study/params.yaml: parts.first: baseline=none; allowed: a key of arms"),
        (["first"], {"seeds": [1, 1]}, "study/params.yaml: parts.first: seeds=[1, 1]; allowed: each seed once"),
    ],
)
def test_a_mistake_is_one_line(
    project: Path, arguments: list[str], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    write_study(project, first=FIRST | changes)
    error = refusal(project, "study", *arguments)
    assert error.startswith(f"error: {says}")
    assert error.count("\n") == 1


def test_the_projects_own_parts_are_valid() -> None:
    parts = load_study(PROJECT / "study" / "params.yaml").all_parts
    assert set(parts) >= {"methods", "masks"}
