"""How much is left: what other settings have left behind is not done."""

from pathlib import Path

import pytest

from maskdm.config.reading import load_params, recipe_of
from maskdm.engine import stages
from maskdm.engine.outlook import done_flops, stage_sizes
from maskdm.engine.project import Project
from maskdm.runtime.processes import ALONE
from pipeline import prepare, reference
from tests.workspace import make_workspace, write_params


def test_only_what_the_settings_of_today_have_left_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path, "smoke")
    budget = {"train_flops": 2e9, "snapshots": [1.0]}
    write_params(tmp_path, seeds=[0], budget=budget)

    def done() -> set[tuple[str, str]]:
        params = load_params()
        sizes = stage_sizes(params, recipe_of(params))
        return {key for key, size in sizes.items() if size and done_flops(params, {key: size}) == size}

    assert not done()  # no data yet
    prepare.main([])
    reference.main([])
    trial = Project.open(ALONE).trial("scratch", 0)
    stages.pretrain(trial)
    stages.finetune(trial)
    assert done() == {("finetune", "scratch")}
    stages.evaluate(trial)
    assert done() == {("finetune", "scratch"), ("evaluate", "scratch")}
    write_params(tmp_path, seeds=[0], budget=budget | {"train_flops": 3e9})
    assert not done()
    write_params(tmp_path, seeds=[0, 1], budget=budget)
    params = load_params()
    sizes = {("finetune", "scratch"): 1.0}
    assert done_flops(params, sizes) == 1.0  # of two seeds
