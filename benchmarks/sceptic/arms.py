"""What a sceptic would slip into a comparison: masks that cannot help, and costs that are wrong."""

from pathlib import Path
from typing import Any

import maskdm.methods
from maskdm.config.params import Params
from maskdm.config.reading import load_params, validated
from maskdm.runtime.paths import ROOT

SEEDS = (1, 2, 3, 4)
TRAIN_FLOPS = 1e12
CROP = {"strategy": "crop", "crop": 4}  # 16 of 64 tokens
BATCH = 96
RATE = {"lr": 2.3e-2}  # of the arms with masks and of their control, all with dense batches of 48
SCRATCH_RATE = {"lr": 3.38e-2}  # what a tuning at twice the compute had chosen for scratch
METHODS = str(Path(__file__).with_name("methods"))


def slip_in() -> None:
    """Put the faulty methods beside the others, in this process."""
    maskdm.methods.__path__ = [*maskdm.methods.__path__, METHODS]


def arm(batch_size: int = BATCH, **how: Any) -> list[dict[str, Any]]:
    """Two fifths of the compute in one way, then whole images."""
    return [{"share": 0.4, "batch_size": batch_size, "override": RATE, **how}, {"batch_size": 48, "override": RATE}]


ARMS: dict[str, tuple[str, list[dict[str, Any]]]] = {  # name -> what it is, its phases
    "scratch": ("the baseline", [{"batch_size": 48, "override": SCRATCH_RATE}]),
    "crop": ("4x4 crops, as they should be", arm(mask=CROP)),
    "control": ("the steps of `crop` on whole images", arm(BATCH // 4)),
    "shuffled": (
        "the tokens of a crop are told each other's places",
        arm(mask=CROP, method={"name": "shuffled"}),
    ),
    "elsewhere": (
        "a crop is said to be where that of another image is",
        arm(mask=CROP, method={"name": "elsewhere"}),
    ),
    "ignored": (
        "masks are drawn, and the network sees all tokens",
        arm(BATCH // 4, mask=CROP, method={"name": "ignored"}),
    ),
}
REFUSED: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "ignored": (
        "the network sees all tokens, and the method says that its blocks see the crop alone",
        arm(mask=CROP, method={"name": "ignored", "admitted": False}),
    ),
    "miscounted": (
        "the network sees a crop where FLOPs are counted, and all tokens where it trains",
        arm(mask=CROP, method={"name": "miscounted"}),
    ),
}


def settings(arms: dict[str, tuple[str, list[dict[str, Any]]]]) -> Params:
    """Those of `params.yaml` with these arms and with scratch."""
    phases = {"scratch": ARMS["scratch"][1]} | {name: own for name, (_, own) in arms.items()}
    changes = {
        "arms": phases,
        "controls": {"control": "crop"} if "control" in phases else {},
        "baseline": "scratch",
        "seeds": SEEDS,
        "budget": {"train_flops": TRAIN_FLOPS, "snapshots": [1.0]},
    }
    return validated(Params, load_params(ROOT / "params.yaml").model_dump() | changes, "benchmarks/sceptic")
