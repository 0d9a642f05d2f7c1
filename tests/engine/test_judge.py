from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.engine.judge import cached, position, save_samples
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import samples_file
from maskdm.training.plan import plan_finetune, plan_pretrain


def test_a_judged_snapshot_is_not_judged_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"fd": 1.5}

    first, again = (cached(tmp_path / "0.5.json", compute) for _ in range(2))
    assert first == again
    assert first == {"fd": 1.5}
    assert calls == [1]


def test_a_snapshot_stands_where_its_phase_took_it(params: Params, recipe: Recipe) -> None:
    plans = (*plan_pretrain(params, recipe, "staged"), plan_finetune(params, recipe, "staged"))
    half, end = (position(plans, share) for share in params.budget.snapshots)
    assert half[1] == pytest.approx(0.5 * params.budget.train_flops, rel=0.02)
    assert end == (plans[-1].images_seen(plans[-1].steps), plans[-1].train_flops(plans[-1].steps))
    assert half[0] < end[0]


def test_the_samples_of_every_snapshot_are_kept(tmp_path: Path) -> None:
    work, out, shares = tmp_path / "work", tmp_path / "out", (0.5, 1.0)
    work.mkdir()
    for level, share in enumerate(shares):
        np.save(work / samples_file(share), np.full((64, 1, 8, 8), level, np.uint8))
    save_samples(out, work, shares)
    assert [np.load(out / samples_file(share)).max() for share in shares] == [0, 1]
    assert (out / "grid.png").is_file()
    with pytest.raises(MaskDMError, match=r"samples-0\.25\.npy: no such file; delete .*work"):
        save_samples(out, work, (0.25, *shares))
