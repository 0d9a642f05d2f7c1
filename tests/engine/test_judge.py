from pathlib import Path
from typing import Any

import pytest

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.engine.judge import cached, position
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
