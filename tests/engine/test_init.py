"""From images to a profile, at toy scale; and everything that stops it, which leaves the project as it was."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maskdm import cli
from maskdm.config.params import Params
from maskdm.config.reading import load_params, load_recipe, read_yaml, validated
from maskdm.datasets.prepare import prepare
from maskdm.datasets.prepared import PreparedData
from maskdm.datasets.survey import Survey
from maskdm.engine.init import NETWORKS, busy, checked, profile_name
from maskdm.engine.profile_text import profile_text
from maskdm.engine.project import Project
from maskdm.engine.proposal import SIDES, check_count, notes, settings_of
from maskdm.engine.searching import check
from maskdm.evaluation.metrics import check_reference, floor_counts
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.processes import ALONE
from maskdm.training.plan import PhasePlan
from tests.datasets.test_survey import pictures
from tests.imports import PROJECT
from tests.raw_data import place

RECIPE = load_recipe("tuned", PROJECT)


def found(count: int, **changes: object) -> Survey:
    looked = min(count, 1000)
    survey = Survey(count, None, None, looked, [], [64] * looked, [0.0] * looked, looked, 1e-4, 0, 0.1)
    return replace(survey, **changes)  # type: ignore[arg-type]


def proposed(survey: Survey, image_size: int = 32, network: int = 2, seeds: int = 4) -> dict[str, object]:
    lr = RECIPE.optimisation.lr
    return settings_of(survey, "images", image_size, NETWORKS[network], 32, seeds, 1e16, lr)


@pytest.mark.parametrize("count", [100, 300, 3_000, 60_000, 1_000_000])
def test_a_proposal_for_so_many_images_passes_the_checks_of_all_stages(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    survey = found(count)
    params = checked(proposed(survey), survey)
    heldout, evaluation = params.data.holdout or 0, params.evaluation
    assert heldout == params.heldout.images == min(1024, count // 5)
    of_floor = sum(floor_counts(evaluation, count - heldout, heldout))
    assert of_floor == evaluation.samples == min(1000, count // 2), "the floor is that of as many images"
    data = PreparedData(np.empty(0), None, {"name": "image_folder"})
    check(Project(params, RECIPE, data, torch.device("cpu"), ALONE))


@pytest.mark.parametrize("image_size", SIDES)
def test_every_size_and_network_fit(image_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    for network in range(len(NETWORKS)):
        params = validated(Params, proposed(found(3000), image_size, network), "proposal")
        assert params.grid[0] in (4, 8, 16)


def test_the_text_of_a_profile_is_its_settings(tmp_path: Path) -> None:
    root = '/a "b" \\ c: d # é'
    settings = proposed(found(300, classes={"a": 200, "b": 100}, in_colour=0)) | {"budget": {"train_flops": 1.2e12}}
    settings["data"]["root"] = root  # type: ignore[index]
    (tmp_path / "profile.yaml").write_text(profile_text(settings, ["1 image: # é"]), encoding="utf-8")
    assert read_yaml(tmp_path / "profile.yaml") == settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "learn them by heart"),
        ({}, "held-out loss is that of 60 images"),
        ({"cropped": [0.5] * 300}, "lose 50 % of their area"),
        ({"shorter_sides": [20] * 300}, "are enlarged"),
        ({"copies": 3}, "Left out"),
        ({"classes": {"a": 150, "b": 150}}, "class_conditional"),
    ],
)
def test_what_few_or_odd_images_cannot_show_is_said(
    changes: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    survey = found(300, **changes)
    assert any(said in note for note in notes(survey, checked(proposed(survey), survey), RECIPE))


def test_of_many_good_images_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    survey = found(60_000)
    assert not list(notes(survey, checked(proposed(survey), survey), RECIPE))


@pytest.mark.parametrize(("load", "device", "said"), [(9.0, "cpu", 1), (1.0, "cpu", 0), (9.0, "cuda", 0)])
def test_a_busy_machine_is_named(load: float, device: str, said: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskdm.engine.init.count_cores", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    assert len(list(busy(torch.device(device)))) == said


def test_a_split_of_folders_is_kept_if_both_sides_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    survey = found(1000, heldout=300)
    check_count(survey)
    params = checked(proposed(survey), survey)
    assert (params.data.holdout, params.heldout.images, params.evaluation.reference) == (None, 300, 500)
    with pytest.raises(MaskDMError, match="into 990 for training and 10 held out; allowed: at least 25"):
        check_count(found(1000, heldout=10))


@pytest.mark.parametrize(
    ("folder", "name"), [("My Photos (1)", "my-photos-1"), ("2024", "images"), ("été", "t"), ("cats_2", "cats_2")]
)
def test_a_profile_is_named_after_the_folder(folder: str, name: str) -> None:
    assert profile_name(Path("/x") / folder, None) == name


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose settings are a profile's, on a machine of a known speed; images lie beside it."""
    folder = tmp_path / "project"
    for name in ("dvc.yaml", "profiles/smoke.yaml", "profiles/recipes/tuned.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((PROJECT / name).read_bytes())
    (folder / "params.yaml").write_bytes((folder / "profiles/smoke.yaml").read_bytes())
    (folder / "records").mkdir()
    place(tmp_path / "pictures", pictures(120))
    monkeypatch.chdir(folder)
    for name in ("cost", "dry_run"):
        monkeypatch.setattr(f"maskdm.engine.{name}.measure_rate", lambda *_: 1e11)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["maskdm", "init", *arguments])
    cli.main()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_becomes_the_selected_profile_and_its_images_can_be_prepared(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "../pictures", "--hours", "0.5")
    said = capsys.readouterr().out
    assert "120 images, listed in " in said
    assert "params.yaml is now profiles/pictures.yaml" in said
    assert (project / "params.yaml").read_bytes() == (project / "profiles" / "pictures.yaml").read_bytes()
    params = load_params(project / "params.yaml")
    assert params.data.root == str(tmp_path / "pictures")
    info = prepare(params.data, project / "data" / "prepared", project / "data" / "raw")
    assert (info["train"], info["heldout"]) == (96, 24)
    check_reference(params.evaluation, info["train"])
    assert sum(floor_counts(params.evaluation, info["train"], info["heldout"])) == params.evaluation.samples


def test_more_hours_are_a_larger_budget_that_takes_about_as_long(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets = []
    for hours in ("0.5", "1"):
        run(monkeypatch, "../pictures", "--hours", hours, "--name", f"of-{hours[-1]}", "--image-size", "16")
        params = load_params(project / "params.yaml")
        assert params.data.image_size == 16
        budgets.append(params.budget.train_flops)
        hour, minute, second = capsys.readouterr().out.split("all of it takes about ")[1].split()[0].split(":")
        took = int(hour) + int(minute) / 60 + int(second) / 3600
        assert 0.85 * float(hours) < took <= float(hours)
    assert budgets[1] > 1.9 * budgets[0]


def test_a_burst_of_real_steps_is_measured(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(project)
    monkeypatch.setattr("maskdm.engine.dry_run.BURST_SECONDS", 0.02)
    run(monkeypatch, "../pictures", "--image-size", "8", "--hours", "2")
    assert load_params(project / "params.yaml").budget.train_flops > 1e9


def test_a_folder_inside_of_the_project_is_named_as_seen_from_its_root(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(project / "data" / "raw" / "mine", pictures(100))
    monkeypatch.chdir(project / "data")
    run(monkeypatch, "raw/mine")
    assert load_params(project / "params.yaml").data.root == "data/raw/mine"


def no_space(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskdm.runtime.files.os.fsync", full)


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    writable = os.access
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK and writable(path, mode))


def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))


def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr("maskdm.engine.cost.measure_rate", stop)


def interrupted_between_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    move, moved = os.replace, list[Path]()

    def once(source: Path, target: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        move(source, target)

    monkeypatch.setattr("os.replace", once)


def edited(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("params.yaml").open("a") as file:
        file.write("# mine\n")


def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize(
    ("arguments", "change", "status", "said"),
    [
        (["../nowhere"], nothing, 2, "no such folder"),
        (["../empty"], nothing, 2, "no images"),
        (["../pdfs"], nothing, 2, "no images (not images: 1 (a.pdf))"),
        (["../torn"], nothing, 2, "none of 2 images can be read"),
        (["../one"], nothing, 2, "1 different images can be read; allowed: at least 100"),
        (["../notes.txt"], nothing, 2, "allowed: a folder or an archive"),
        ([".."], nothing, 2, "holds the project itself"),
        (["."], nothing, 2, "holds the project itself"),
        (["records"], nothing, 2, "the project writes there itself"),
        (["../a$b"], nothing, 2, "settings cannot name this path"),
        (["../pictures", "--name", "smoke"], nothing, 2, "profiles/smoke.yaml exists"),
        (["../pictures", "--name", "My Name"], nothing, 2, "--name=My Name; allowed: small letters"),
        (["../pictures", "--hours", "0.001"], nothing, 2, "--hours=0.001: the smallest network takes about"),
        (["../pictures", "--hours", "-1"], nothing, 2, "--hours=-1; allowed: above 0"),
        (["../pictures", "--hours", "nan"], nothing, 2, "--hours=nan; allowed: above 0"),
        (["../pictures", "--image-size", "20"], nothing, 2, "--image-size=20; allowed: 8, 16"),
        (["../pictures"], no_space, 2, "profiles/pictures.yaml: cannot write it: No space left on device"),
        (["../pictures"], small_disk, 2, "1 kB are free"),
        (["../pictures"], read_only, 2, "may not be written"),
        (["../pictures"], edited, 2, "params.yaml has edits"),
        (["../pictures"], interrupted, 130, "interrupted"),
        (["../pictures"], interrupted_between_its_files, 130, "interrupted"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_the_project_as_it_was(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    change: Callable[[pytest.MonkeyPatch], None],
    status: int,
    said: str,
) -> None:
    for name, content in {
        "empty": {},
        "pdfs": {"a.pdf": b"%PDF"},
        "torn": {"a.png": b"torn", "b.png": b""},
        "one": pictures(1),
        "a$b": pictures(1),
    }.items():
        (tmp_path / name).mkdir()
        place(tmp_path / name, content)  # type: ignore[arg-type]
    (tmp_path / "notes.txt").write_text("no images")
    change(monkeypatch)
    before = files(project)
    with pytest.raises(SystemExit, match=str(status)):
        run(monkeypatch, *arguments)
    error = capfd.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert files(project) == before


def test_the_time_that_is_asked_for_instead_is_enough(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rate(_: object, __: object, plan: PhasePlan, ___: object) -> float:
        return 2e10 if plan.mask else 1e11  # so that bursts of dense steps alone promise too much

    for name in ("cost", "dry_run"):
        monkeypatch.setattr(f"maskdm.engine.{name}.measure_rate", rate)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "../pictures", "--hours", "0.001")
    wanted = capsys.readouterr().err.split("allowed: from ")[1].split(",")[0]
    run(monkeypatch, "../pictures", "--hours", str(1.02 * float(wanted)))  # said in two digits
    assert "2 seeds" in capsys.readouterr().out
