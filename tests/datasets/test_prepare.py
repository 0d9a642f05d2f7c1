"""The stage `prepare` through its entry point, in a temporary project."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from maskdm.datasets.prepare import prepare
from maskdm.datasets.prepared import PreparedData
from maskdm.runtime.paths import own_project
from pipeline.prepare import main
from tests.conftest import PARAMS
from tests.raw_data import grey_levels, place, settings


def write_params(folder: Path, data: dict[str, Any]) -> None:
    params = {
        "seeds": [0],
        "recipe": "fast",
        "data": {"root": None, "image_size": 8, "channels": 1, "train_images": None} | data,
        "model": {"patch_size": 2, "embed_dim": 16, "depth": 3, "num_heads": 2, "class_conditional": False},
        "budget": {"train_flops": 1e9, "snapshots": [1.0]},
        "heldout": {"images": 10, "points": 2},
        "arms": {"scratch": [{"batch_size": 16}]},
        "baseline": "scratch",
        "controls": {},
        "sampling": {"sampler": "ddim", "num_inference_steps": 2, "eta": 0.0, "batch_size": 8},
        "evaluation": {
            "extractor": "effnet_lite0", "input_size": 32, "weights": None, "batch_size": 8, "samples": 8,
            "reference": 8, "kid_subsets": 1, "kid_subset_size": 4, "nearest_k": 1,
        },
        "search": PARAMS["search"],
    }  # fmt: skip
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params, file)


def test_the_stage_writes_the_prepared_folder_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {"name": "digits", "holdout": 97, "train_images": 500})
    main([])
    data = PreparedData.open(tmp_path / "data" / "prepared")
    assert data.train.shape == (500, 1, 8, 8)
    assert data.info == json.loads((tmp_path / "data" / "prepared" / "dataset.json").read_text())
    said = capsys.readouterr().out
    assert said.startswith("digits: 500 training and 97 held-out images of 1x8x8")
    assert said.count("\n") == 1


def test_the_line_says_how_many_files_were_used_and_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    place(tmp_path / "images", grey_levels(6) | {"README": b"", "broken.png": b"", "two\nlines.png": b""})
    (tmp_path / "images" / os.fsdecode(b"\xff.txt")).touch()  # no text
    write_params(tmp_path, {"name": "image_folder", "root": "images", "channels": 3, "holdout": 2})
    main([])
    printed = capsys.readouterr()
    assert printed.out == (
        "image_folder: 4 training and 2 held-out images of 3x8x8; 6 of 10 files used; "
        "left out: not images: 2 (README, \\udcff.txt), unreadable: 2 (broken.png, two\\nlines.png), "
        "all names in data/prepared/left_out.json; source: folder images\n"
    )
    assert "left out: two\\nlines.png: not an image\n" in printed.err
    printed.out.encode()
    listed = json.loads((tmp_path / "data" / "prepared" / "left_out.json").read_text())
    assert listed == {"not images": ["README", "\udcff.txt"], "unreadable": ["broken.png", "two\nlines.png"]}


@pytest.mark.parametrize("root", [None, "data/raw/image_folder", "$HERE/image_folder"])
def test_a_copy_of_the_project_that_dvc_runs_in_reads_the_raw_files_of_the_project_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root: str | None
) -> None:
    copy = tmp_path / "project" / ".dvc" / "tmp" / "exps" / "standalone" / "tmp1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("HERE", "data/raw")
    (tmp_path / "link").symlink_to("project")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "link"))  # as DVC sets it in `dvc exp run --temp`
    write_params(copy, {"name": "image_folder", "root": root, "channels": 3, "holdout": 2})
    with pytest.raises(SystemExit):
        main([])
    raw = tmp_path / "project" / "data" / "raw" / "image_folder"
    assert capsys.readouterr().err.startswith(f"error: {raw}: no such folder or archive; place there: ")
    place(raw, grey_levels(6))
    main([])
    assert len(PreparedData.open(copy / "data" / "prepared").train) == 4
    if root is not None:
        place(copy / "data" / "raw" / "image_folder", grey_levels(9))  # in git, or in DVC
        main([])
        assert len(PreparedData.open(copy / "data" / "prepared").train) == 7


def test_the_project_is_where_its_stages_run_whatever_dvc_calls_its_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for root in (tmp_path, tmp_path / "inside", tmp_path / "elsewhere"):
        monkeypatch.setenv("DVC_ROOT", str(root))
        assert own_project() == Path()
    monkeypatch.delenv("DVC_ROOT")
    assert own_project() == Path()


def test_missing_data_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {"name": "celebahq", "channels": 3, "holdout": 100})
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: data/raw/celebahq: no such folder")
    assert said.count("\n") == 1
    assert not (tmp_path / "data" / "prepared").exists()


def test_ctrl_c_between_taking_the_old_data_away_and_putting_the_new_in_place_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = place(tmp_path / "raw" / "image_folder", grey_levels(6))
    out = tmp_path / "prepared"
    prepare(settings("image_folder", root=str(raw), holdout=1), out, tmp_path / "raw")
    before, rename = (out / "dataset.json").read_bytes(), os.rename

    def stop(source: Path, target: Path) -> None:
        if source.name == "new":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("os.rename", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(settings("image_folder", root=str(raw), holdout=2), out, tmp_path / "raw")
    assert (out / "dataset.json").read_bytes() == before
    assert not list(tmp_path.glob(".prepared.old"))
