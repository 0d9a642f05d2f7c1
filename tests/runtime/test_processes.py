"""One process and several do the same: here in one pytest process against three of torchrun."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.processes import ALONE, Processes
from tests.imports import PROJECT
from tests.replay import DTYPES, STEPS, replay
from tests.workspace import ENVIRONMENT

# Three processes add the same numbers up in another order. Measured after 20 steps, as a share of the weights' norm:
# 1e-16 in float64, 5e-8 in float32, which is each type's rounding. The tolerances leave room for the matrix products of
# other processors, and for Adam, which divides a gradient by its own size: of one that is nearly 0, rounding decides.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [7, 16, 250])
def test_shares_are_in_order_complete_and_alike(count: int, total: int) -> None:
    shares = [list(range(total)[Processes(rank, count).share(total, "n")]) for rank in range(count)]
    assert [index for share in shares for index in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_fewer_images_than_processes_are_named() -> None:
    with pytest.raises(MaskDMError, match="batch_size=3; allowed: at least 4, an image for each process"):
        Processes(0, 4).share(3, "batch_size")


def test_alone_nothing_changes(network: torch.nn.Module) -> None:
    part, value = np.arange(3), torch.tensor(2.0)
    assert ALONE.is_main
    assert ALONE.replicate(network) is network
    assert ALONE.gather(part) is part
    assert ALONE.mean(value) is value
    assert ALONE.agree(True, False) == (True, False)


# --- three processes of torchrun ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of three processes found."""
    folder = tmp_path_factory.mktemp("three")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    subprocess.run([*torchrun, "-m", "tests.replay", folder], cwd=PROJECT, env=ENVIRONMENT, check=True, timeout=300)
    return folder


@pytest.mark.parametrize("name", DTYPES)
def test_three_processes_train_and_sample_like_one(name: str, of_three: Path, tmp_path: Path) -> None:
    one = replay(tmp_path, DTYPES[name], ALONE)
    main, other, _ = (torch.load(of_three / f"{name}-{rank}.pt") for rank in range(3))
    for weights in ("weights", "ema"):
        assert torch.equal(main[weights], other[weights])
        assert ((main[weights] - one[weights]).norm() / one[weights].norm()).item() < TOLERANCE[name], weights
    assert torch.equal(main["resumed"], main["weights"])
    assert main["history"] == other["history"]
    for row, expected in zip(main["history"], one["history"], strict=True):
        assert row == pytest.approx(expected, rel=10 * TOLERANCE[name])
    # a sample may be rounded to the next grey level
    assert main["samples"].shape == one["samples"].shape == (7, 1, 8, 8)
    assert (main["samples"].int() - one["samples"].int()).abs().max() <= 1
    assert len({image.numpy().tobytes() for image in one["samples"]}) == 7


def test_each_image_is_read_once_and_by_one_process(of_three: Path, tmp_path: Path) -> None:
    one = replay(tmp_path, torch.float32, ALONE)
    main = torch.load(of_three / "float32-0.pt")
    assert sorted(main["read"]) == sorted(one["read"])
    assert len(one["read"]) == STEPS * 16
    assert main["read_each"] == [STEPS * 5, STEPS * 5, STEPS * 6]


def test_only_the_main_process_logs(of_three: Path) -> None:
    logged = [torch.load(of_three / f"float32-{rank}.pt")["logged"] for rank in range(3)]
    assert logged[0][-1] == 2
    assert logged[1:] == [[], []]
