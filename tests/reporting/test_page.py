"""What the pages say, and the stage that writes them."""

import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.reporting import analysis, page, report
from maskdm.tracking.records import read_records, write_step_times
from pipeline.report import main
from tests.comparison import (
    DATASET,
    LATER,
    NOISE,
    RECIPE,
    REDUCTION,
    REFERENCE,
    analysed,
    make_records,
    make_times,
    of_before,
    run_stage,
    settings,
    without,
    write_parts,
    write_project,
    write_settings_of_parts,
)


@pytest.fixture
def params() -> Params:
    return Params.model_validate(settings())


@pytest.fixture
def project(tmp_path: Path, params: Params) -> Path:
    write_project(tmp_path, settings(), make_records(params))
    return tmp_path


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["report"])
    return project


# --- the answer -----------------------------------------------------------------------------------------------------


def answer(params: Params, spread: float = 0.002, **reduction: float) -> str:
    records = make_records(params, REDUCTION | reduction, spread)
    return page.headline(params, analysed(params, records).arms, "squares")


def only(*arms: str, seeds: list[int] | None = None) -> Params:
    """The settings with some of the arms."""
    own = settings()
    own["arms"] = {arm: own["arms"][arm] for arm in arms}
    own["controls"] = {control: arm for control, arm in own["controls"].items() if control in arms}
    return Params.model_validate(own | {"seeds": seeds or list(NOISE)})


def test_a_gain_is_said_with_its_interval_and_what_the_control_needs(params: Params) -> None:
    assert answer(params) == (
        "On squares at 36 TFLOPs `block90` reaches `scratch`'s final held-out loss with 78.1 % of its compute (76.8 to "
        "79.4 %, 4 seeds); its control without masks needs 96.1 % (94.5 to 97.6 %)."
    )


def test_an_arm_without_a_control_has_none_to_speak_of(params: Params) -> None:
    text = answer(params, crop3=0.9)
    assert text.startswith("On squares at 36 TFLOPs `crop3` reaches `scratch`'s final held-out loss with 65.6 %")
    assert "control" not in text


def test_a_control_that_never_gets_there_or_does_as_well_is_said(params: Params) -> None:
    assert answer(params, control=1.1).endswith("; its control without masks gets there with 0 of 4 seeds.")
    assert answer(params, control=0.94).endswith("%), so that masks need not be the reason.")


def test_no_clear_gain_is_said_plainly(params: Params) -> None:
    levels = {"patch90": 1.001, "block90": 0.999, "control": 1.0, "crop3": 1.002}
    assert answer(params, **levels) == (
        "On squares at 36 TFLOPs no arm ends with a clearly lower held-out loss than `scratch`: the lowest, `block90`, "
        "-0.1 % (-0.5 to +0.3 %, 4 seeds); its control without masks +0.0 % (-0.4 to +0.4 %)."
    )
    assert answer(only("scratch", "crop3"), crop3=0.999) == (
        "On squares at 36 TFLOPs `crop3` does not end with a clearly lower held-out loss than `scratch`: -0.1 % (-0.5 "
        "to +0.3 %, 4 seeds)."
    )


def test_arms_that_are_all_worse_are_said_to_be(params: Params) -> None:
    levels = {"patch90": 1.1, "block90": 1.2, "control": 1.1, "crop3": 1.05}
    assert answer(params, **levels) == (
        "On squares at 36 TFLOPs no arm ends with a lower held-out loss than `scratch`: the lowest, `crop3`, +5.0 "
        "% (+4.6 to +5.4 %, 4 seeds)."
    )
    assert "`crop3` ends with a higher held-out loss than `scratch`: +5.0 %" in answer(
        only("scratch", "crop3"), crop3=1.05
    )


def test_an_arm_that_is_clearly_lower_goes_before_one_that_is_only_lower_in_the_mean(params: Params) -> None:
    arms = analysed(params).arms
    arms.loc[arms["arm"] == "block90", f"{page.LOSS}_high"] = 1.01
    assert "`patch90` reaches `scratch`'s final held-out loss" in page.headline(params, arms, "squares")


def test_a_lower_loss_that_one_seed_does_not_reach_is_said(params: Params) -> None:
    arms = analysed(params).arms
    own = arms["arm"] == "block90"
    arms.loc[own, ["compute_to_target", "compute_to_target_high"]] = float("inf")
    arms.loc[own, "seeds_at_target"] = 3
    assert page.headline(params, arms, "squares") == (
        "On squares at 36 TFLOPs `block90` ends with a lower held-out loss than `scratch`: -6.0 % (-6.4 to -5.6 %, 4 "
        "seeds), and reaches `scratch`'s with 3 of 4 seeds; its control without masks -1.0 % (-1.4 to -0.6 %)."
    )


def test_a_share_whose_interval_holds_the_whole_is_no_saving(params: Params) -> None:
    arms = analysed(params).arms
    arms.loc[arms["arm"] == "block90", "compute_to_target_high"] = 1.02
    says = "78.1 % of its compute (76.8 to 102 %, 4 seeds), which does not rule out that it saves none; its control"
    assert says in page.headline(params, arms, "squares")


def test_one_seed_has_no_interval() -> None:
    text = answer(only("scratch", "block90", "control", seeds=[1]))
    assert "with 78.1 % of its compute (one seed, hence no interval); its control without masks needs 96.1 %." in text
    text = answer(only("scratch", "crop3", seeds=[1]))
    assert "`crop3` ends with a higher held-out loss than `scratch`: +3.0 % (one seed, hence no interval)." in text


def test_a_baseline_alone_has_nothing_to_say() -> None:
    assert answer(only("scratch")) == "On squares at 36 TFLOPs there is no arm to compare with `scratch`."
    assert page.standing(analysed(only("scratch")).arms, "scratch", "fid") == "No other arm was trained."


def test_what_is_clear_is_said_by_both_measures(params: Params) -> None:
    arms = analysed(params, control=1.0).arms
    loss, distance = page.standing(arms, "scratch", "fid").splitlines()
    assert loss == (
        "- Held-out loss at equal compute, against `scratch`: lower for `patch90`, `block90`; higher for `crop3`; not "
        "clearly different for `control`."
    )
    assert distance.startswith("- fid at equal compute, against `scratch`: lower for ")
    alone = analysed(Params.model_validate(settings() | {"seeds": [1]})).arms
    assert page.standing(alone, "scratch", "fid").startswith("One seed an arm: there are no intervals")


METHODS: dict[str, Any] = {
    "routed": {"mask": {"strategy": "patch", "ratio": 0.5}, "method": {"name": "route", "first": 1, "last": 1}},
    "sized": {"method": {"name": "sized_to_noise", "levels": [{"until": 0.5, "crop": 4}, {"until": 1, "factor": 2}]}},
}


def test_a_picture_of_every_group_says_what_it_shows() -> None:
    own, dense = settings(), {"batch_size": 32}
    arms = {arm: [method | {"share": 0.5, "batch_size": 32}, dense] for arm, method in METHODS.items()}
    params = Params.model_validate(own | {"arms": {"scratch": [dense]} | arms, "controls": {}})
    said = [
        page.group_in_words(phase, group, params.grid)
        for arm in METHODS
        for phase in params.arms[arm][:1]
        for group in phase.groups
    ]
    assert said == [
        "route, patch-wise, 50 % (removed: 50 %)",
        "sized-to-noise: 4x4 crop at 0 to 50 % of the noise levels (removed: 75 %)",
        "sized-to-noise: 2x2 as one at 50 to 100 % of the noise levels (removed: 75 %)",
    ]


# --- the page -------------------------------------------------------------------------------------------------------


def whole_page(
    params: Params,
    dataset: dict[str, Any] = DATASET,
    reference: dict[str, Any] = REFERENCE,
    records: analysis.Records | None = None,
) -> str:
    found, recipe = analysed(params, records), Recipe.model_validate(RECIPE)
    drawn = [f"default/{name}" for name in page.CAPTIONS]
    return page.default_page(
        params,
        recipe,
        dataset,
        604432,
        make_times(params),
        found.arms,
        found.metric,
        reference,
        found.measured_with,
        drawn,
    )


def test_the_page_begins_with_the_answer_and_its_table(params: Params) -> None:
    blocks = whole_page(params).split("\n\n")
    assert blocks[0].startswith("# ")
    assert blocks[1].startswith("**On squares at 36 TFLOPs `block90`")
    assert blocks[2].startswith("| arm ")


def test_every_row_of_a_table_has_all_cells_and_controls_are_marked(params: Params) -> None:
    text = whole_page(params)
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [2 + 5, 2 + 5]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
        first = [line.split("|")[1].strip() for line in table[2:]]
        assert first == ["scratch", "patch90", "block90", "control (control of `block90`)", "crop3"]
    assert "0 of 4 seeds" in tables[0][-1]
    assert "78.1 % (76.8 to 79.4 %)" in tables[0][4]
    assert not any(word in text for word in ("nan", "inf "))


def test_the_page_names_what_was_compared_and_how_it_was_measured(params: Params) -> None:
    text = whole_page(params)
    assert "a CPU, 2 cores; commit `0123456`; spread 3 %" in text
    assert "with each of the seeds 1, 2, 3, 4" in text
    assert "8x8 tokens), 604.4 k parameters" in text
    assert (
        "The floor, real vs real: fd_effnet_lite0 80.25, kid -0.00012, precision 0.91, recall 0.9, density 0.99, "
        "coverage 0.24, nearest 0.92, of 1,000 against 10,000 real images." in text
    )
    assert "As many samples as here reach 0.249 where both are distributed alike." in text
    assert "the farthest of its 3 nearest real ones" in text
    assert (
        "extractor effnet_lite0 at 96 px; 1,000 samples against 10,000 training images; ddim, 25 steps, eta 0" in text
    )
    assert "`fd_effnet_lite0` is a stand-in, not FID" in text
    assert "- **control**:" in text
    assert "of 500 against" not in text
    assert "the floor of 1,000 real images would be lower" in whole_page(
        params, reference=REFERENCE | {"floor_images": 500}
    )


def test_fid_is_no_stand_in_and_without_controls_none_is_explained(params: Params) -> None:
    setup = analysed(params).measured_with
    assert "stand-in" not in page.definitions(params, "fid", make_times(params), setup, analysis.MEASURES)
    assert "guidance" not in page.definitions(params, "fid", make_times(params), setup, analysis.MEASURES)
    guided = setup | {"sampler": "unipc", "guidance_scale": 2.0}
    assert "steps, guidance scale 2; " in page.definitions(params, "fid", make_times(params), guided, analysis.MEASURES)
    bare = only("scratch", "crop3")
    assert "**control**" not in page.definitions(bare, "fid", make_times(params), setup, analysis.MEASURES)
    assert "dashed" in page.figure("default/curves", params)
    assert "dashed" not in page.figure("study/part_curves", bare)


@pytest.mark.parametrize(
    ("duplicates", "says"),
    [
        ({"train_and_heldout": 0, "left_out": 0}, "12 held-out images of 1x32x32, no image is in both; SHA-256"),
        ({"train_and_heldout": 0, "left_out": 7}, "no image is in both (7 copies were left out); SHA-256"),
        ({"train_and_heldout": 1234, "left_out": 0}, "1,234 training images have the pixels of a held-out one; "),
        (None, "12 held-out images of 1x32x32; SHA-256"),
    ],
)
def test_the_page_says_whether_held_out_images_are_in_training(
    params: Params, duplicates: dict[str, int] | None, says: str
) -> None:
    assert says in whole_page(params, DATASET | ({"duplicates": duplicates} if duplicates else {}))


def test_the_table_ends_with_the_measures_of_samples_and_a_dash_where_a_record_lacks_one(params: Params) -> None:
    old = [(of_before(record) if record.arm == "crop3" else record, own) for record, own in make_records(params)]
    tables = [block for block in whole_page(params, records=old).split("\n\n") if block.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.split("|")[-7:-1]] for line in tables[1].splitlines())
    assert head == ["kid", "precision", "recall", "density", "coverage", "nearest"]
    assert [row[1:] for row in rows] == [["0.6", "0.4", "0.8", "0.2", "1.25"]] * 4 + [["0.6", "0.4", "-", "-", "-"]]


def test_records_of_before_density_and_coverage_have_the_page_that_they_had(params: Params) -> None:
    old = [(of_before(record), machine) for record, machine in make_records(params)]
    floor = without(REFERENCE["floor"], *LATER)
    text = whole_page(params, reference=REFERENCE | {"floor": floor}, records=old)
    assert "recall 0.9, of 1,000 against 10,000 real images." in text
    assert "**recall**: share of real images near samples; higher is better.\n- **removed**" in text
    assert not any(word in text for word in (*LATER[:2], "**nearest**", "nan"))
    assert "**density**" in whole_page(params, records=old), "the floor has it"


# --- the stage ------------------------------------------------------------------------------------------------------


def test_the_stage_writes_everything_and_the_same_bytes_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_stage(project)
    assert done.returncode == 0, done.stderr

    def written() -> dict[str, bytes]:
        paths = (path for path in (project / "reports").rglob("*") if path.is_file())
        return {str(path.relative_to(project / "reports")): path.read_bytes() for path in paths}

    first = written()
    pictures = {f"default/{name}.png" for name in page.CAPTIONS}
    tables = {f"default/{name}" for name in page.TABLES}
    metrics = {f"default/metrics/{arm}.json" for arm in ("scratch", "patch90", "block90", "control", "crop3")}
    assert first.keys() == pictures | tables | metrics | {"report.md"}
    text = first["report.md"].decode()
    assert all(f"({name})" in text for name in pictures | tables)
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["report"])
    main()
    assert written() == first


def test_the_files_hold_the_frames(run: Path, params: Params) -> None:
    main()
    found = analysed(params, read_records(run, ("default",)))
    frames = {"arms": found.arms, "trials": found.trials, "means": analysis.means(found.curves)}
    for name, frame in frames.items():
        read = pd.read_csv(run / "reports" / "default" / f"{name}.csv")
        pd.testing.assert_frame_equal(
            read, pd.read_csv(StringIO(frame.to_csv(index=False))), rtol=1e-9, check_dtype=False
        )
    folder = run / "reports" / "default" / "metrics"
    numbers = {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}
    assert numbers == analysis.metrics(found.arms, "fd_effnet_lite0")


def test_the_stage_takes_records_of_before_density_and_coverage(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path, settings(), [(of_before(record), machine) for record, machine in make_records(params)])
    monkeypatch.chdir(tmp_path)
    report.write_default()
    folder = tmp_path / "reports" / "default"
    names = {path.name for path in folder.iterdir()}
    assert names - {"metrics"} == {f"{name}.png" for name in page.CAPTIONS} | set(page.TABLES)
    assert "density" not in pd.read_csv(folder / "trials.csv")


def test_a_comparison_without_masks_has_all_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC asks for every file of its list."""
    bare = settings()
    bare["controls"] = {}
    bare["arms"] = {arm: bare["arms"][arm] for arm in ("scratch", "control")}
    bare["budget"]["snapshots"] = [1.0]
    write_project(tmp_path, bare, make_records(Params.model_validate(bare)))
    monkeypatch.chdir(tmp_path)
    report.write_default()
    names = {path.name for path in (tmp_path / "reports" / "default").iterdir()}
    assert names - {"metrics"} == {f"{name}.png" for name in page.CAPTIONS} | set(page.TABLES)


def test_a_trial_that_is_missing_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "records" / "default" / "crop3.jsonl"
    path.write_text("".join(line for line in path.open() if '"crop3/3"' not in line))
    with pytest.raises(SystemExit, match="2"):
        main()
    says = "error: records/default/crop3.jsonl: crop3 with seed 3 is missing; `dvc repro` trains it\n"
    assert capsys.readouterr().err == says


@pytest.mark.parametrize(
    "name",
    [
        "records/default/block90.jsonl",
        "records/reference.json",
        "records/step_time.json",
        "runs/evaluate/patch90/1/samples.npy",
        "runs/masks.npz",
        "profiles/recipes/tuned.yaml",
    ],
)
def test_a_missing_file_is_named(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).unlink()
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1
    assert not (run / "reports").exists()


@pytest.mark.parametrize(
    "name",
    ["records/reference.json", "records/step_time.json", "runs/evaluate/patch90/1/samples.npy", "runs/masks.npz"],
)
def test_a_truncated_file_is_named(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).write_bytes((run / name).read_bytes()[:40])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"error: {name}: " in capsys.readouterr().err


# --- the study's page -----------------------------------------------------------------------------------------------


def test_the_study_answers_what_was_run_and_names_what_was_not(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = settings()
    shared = {key: whole[key] for key in ("seeds", "heldout", "arms", "baseline", "controls")}
    part = shared | {"series": "law", "question": "Does it pay?", "paper": "it does.", "budget": whole["budget"]}
    once = part | {"question": "And at its end?", "budget": {"train_flops": 36e12, "snapshots": [1.0]}, "series": None}
    half = part | {"question": "And with half of it?", "budget": {"train_flops": 18e12, "snapshots": [1.0]}}
    rivals = once | {"question": "Which method?", "page": "methods", "series": "rivals"}
    fewer = half | {"question": "And sooner?", "page": "methods-half", "series": "rivals"}
    parts = {"first": part, "second": once, "third": part, "half": half, "rivals": rivals, "fewer": fewer}
    write_settings_of_parts(run, parts)
    write_parts(run, whole, {name: block for name, block in parts.items() if name != "third"}, before="first")
    monkeypatch.setattr(sys, "argv", ["report", "--study"])
    main()

    text = (run / "reports" / "study.md").read_text()
    gain = "On squares at 36 TFLOPs `block90` {verb} `scratch`'s final held-out loss with 78.1 % of its compute"
    assert f"## Does it pay?\n\n**{gain.format(verb='ends at')}" in text  # beside the half budget
    (row,) = (line for line in text.splitlines() if line.startswith("| Does it pay? "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == ["squares", "36 TFLOPs", "`block90`"]
    assert cells[5].startswith("78.1 % (")
    assert (cells[7].partition(" (")[0], cells[8]) == ("-1.0 %", "4")
    assert f"## And at its end?\n\n**{gain.format(verb='reaches')}" in text
    assert text.count("budget to scratch's loss |") == text.count("**budget to the baseline's loss**") == 1
    assert "The paper: it does." in text
    assert "more alike than chance (p < 0.05) in `first`, `second`, `half`; not in any other." in text
    assert text.count("- **intervals**: ") == 1
    assert "## Not run yet\n\n- `python -m pipeline.study third`" in text
    names = {path.name for path in (run / "reports" / "study").iterdir()}
    # Curves of several snapshots alone.
    against = {"methods_against.png", "methods-half_against.png", "study_against.png"}
    pictures = {"budgets.png", "first_curves.png"} | against
    assert names == pictures | {"arms.csv", "trials.csv"}
    table = pd.read_csv(run / "reports" / "study" / "trials.csv")
    done = ("first", "second", "half", "rivals", "fewer")
    assert table["comparison"].value_counts().to_dict() == dict.fromkeys(done, 20)
    assert table.groupby("comparison")["density"].count().to_dict() == dict.fromkeys(done, 20) | {"first": 0}
    assert text.count("density |") == 2
    assert text.count("**density**") == 1
    methods = (run / "reports" / "methods.md").read_text()
    sooner = (run / "reports" / "methods-half.md").read_text()
    assert all(f"(study/{name})" in text + methods + sooner for name in names)
    assert f"## Which method?\n\n**{gain.format(verb='ends at')}" in methods
    assert "The smallest budget with which the arm, its schedule fitted to it, ends at scratch's" in methods
    assert sooner.startswith("# The methods with half of the compute")
    assert "## And sooner?\n\n**On squares at 18 TFLOPs" in sooner
    assert (
        "wherever it was trained: `patch90`, `block90`; clearly above it everywhere: `crop3`; neither: no arm"
        in methods
    )


def test_a_study_of_which_nothing_was_run_has_a_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_settings_of_parts(run, {})
    write_step_times(run / "records" / "study_step_time.json", make_times(Params.model_validate(settings())))
    monkeypatch.setattr(sys, "argv", ["report", "--study"])
    report.write_study()
    assert (run / "reports" / "study.md").read_text().startswith("# When and how much")
