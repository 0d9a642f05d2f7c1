"""The figures show what the frames say: right places, right colours, nothing drawn over or left out."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from maskdm.reporting import figures
from maskdm.reporting.analysis import FLOOR

COLORS = figures.arm_colors(["scratch", "block90"], "scratch")


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with figures.style():
        yield


def losses() -> pd.DataFrame:
    """`scratch` falls to 0.5 at 4 TFLOPs; `block90` switches at 2 TFLOPs and is at 0.5 at 3 TFLOPs."""
    curves = {
        "scratch": [(1, "finetune", 0, 1.0), (2, "finetune", 0, 0.8), (3, "finetune", 0, 0.6), (4, "finetune", 0, 0.5)],
        "block90": [(1, "pretrain", 0, 2.0), (2, "pretrain", 0, 1.5), (3, "finetune", 1, 0.5), (4, "finetune", 1, 0.4)],
    }
    return pd.DataFrame(
        {
            "arm": arm,
            "stage": stage,
            "phase": phase,
            "train_flops": 1e12 * point,
            "train_seconds": 600.0 * point,
            "heldout_loss": loss,
        }
        for arm, rows in curves.items()
        for point, stage, phase, loss in rows
    )


def measured(floor: float = 80.0) -> pd.DataFrame:
    rows = [(arm, point, 1000.0 / point) for arm in COLORS for point in (1, 2, 4)]
    frame = pd.DataFrame(
        {"arm": arm, "train_flops": 1e12 * point, "fd_effnet_lite0": value, "kid": value / 1e4}
        for arm, point, value in rows
    )
    return pd.concat([frame, pd.DataFrame([{"arm": FLOOR, "fd_effnet_lite0": floor, "kid": -1e-4}])], ignore_index=True)


def images(channels: int = 1, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (count, channels, 8, 8), dtype=np.uint8)


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_arms_have_colours_of_their_own_and_the_baseline_is_dark() -> None:
    for count in (2, 9, 15):
        colors = figures.arm_colors([f"arm{i}" for i in range(count)], "arm1")
        assert len(set(colors.values())) == count
        assert colors["arm1"] == figures.BASELINE


def test_an_arm_keeps_its_colour_whichever_arm_comes_after() -> None:
    assert figures.arm_colors(["scratch", "block90", "crop3"], "scratch")["block90"] == COLORS["block90"]


def test_pre_training_is_dashed_and_joined_to_fine_tuning() -> None:
    axes = figures.heldout_loss(losses(), COLORS, "scratch").axes[0]
    drawn = [line for line in axes.lines if line.get_color() == COLORS["block90"]]
    dashed, solid, switch = drawn
    assert (dashed.get_linestyle(), solid.get_linestyle()) == ("--", "-")
    assert np.array_equal(dashed.get_xydata(), [[1, 2.0], [2, 1.5]])
    assert np.array_equal(solid.get_xydata(), [[2, 1.5], [3, 0.5], [4, 0.4]])
    assert np.array_equal(switch.get_xydata(), [[2, 1.5]])


def test_the_target_is_marked_where_an_arm_reaches_it() -> None:
    figure = figures.heldout_loss(losses(), COLORS, "scratch")
    points = {
        line.get_color(): np.asarray(line.get_xydata()).tolist()
        for line in figure.axes[1].lines
        if line.get_marker() == "D"
    }
    assert points == {COLORS["scratch"]: [[4, 0.5]], COLORS["block90"]: [[3, 0.5]]}
    assert legend_texts(figure)[:2] == ["scratch  100 %", "block90  75 %"]


def test_an_arm_that_does_not_reach_the_target_is_not_marked() -> None:
    frame = losses()
    frame.loc[frame["arm"] == "block90", "heldout_loss"] = 0.7
    figure = figures.heldout_loss(frame, COLORS, "scratch")
    assert [line.get_color() for line in figure.axes[1].lines if line.get_marker() == "D"] == [COLORS["scratch"]]
    assert "block90  not reached" in legend_texts(figure)


def test_the_enlarged_panel_shows_every_crossing() -> None:
    frame = losses()
    frame.loc[frame["arm"] == "block90", "heldout_loss"] = 0.45  # below the target from its first point on
    axes = figures.heldout_loss(frame, COLORS, "scratch").axes[1]
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    assert left < 1 < 4 < right
    assert bottom < 0.45 < 0.5 < top


def test_the_axis_has_a_unit_that_fits() -> None:
    frame = losses()
    assert figures.heldout_loss(frame, COLORS, "scratch").axes[0].get_xlabel() == "training compute (TFLOPs)"
    frame["train_flops"] *= 1e4
    assert figures.heldout_loss(frame, COLORS, "scratch").axes[0].get_xlabel() == "training compute (PFLOPs)"
    time = figures.heldout_loss(frame, COLORS, "scratch", "train_seconds")
    assert time.axes[0].get_xlabel() == "training time (minutes)"
    assert np.asarray(time.axes[0].lines[1].get_xdata()).tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize("floor", [80.0, 0.0, -5.0])
def test_the_floor_is_in_the_panel_and_labelled(floor: float) -> None:
    for axes in figures.distances(measured(floor), COLORS).axes:
        dashed = next(line for line in axes.lines if line.get_linestyle() == "--")
        low, high = axes.get_ylim()
        assert low < np.asarray(dashed.get_ydata())[0] < high
        assert [text.get_text() for text in axes.texts] == [FLOOR]


def test_a_stand_in_is_not_called_fid() -> None:
    axes = figures.distances(measured(), COLORS).axes[0]
    assert axes.get_ylabel().startswith("fd_effnet_lite0")
    assert (
        figures.distances(measured().rename(columns={"fd_effnet_lite0": "fid"}), COLORS)
        .axes[0]
        .get_ylabel()
        .startswith("FID")
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_tile_holds_every_image_in_its_place(channels: int) -> None:
    given = images(channels, count=5)
    picture = figures.tile(given, columns=2)
    assert picture.shape == (3 * 9 - 1, 2 * 9 - 1, channels)
    for index, image in enumerate(given):
        row, column = 9 * (index // 2), 9 * (index % 2)
        assert np.array_equal(picture[row : row + 8, column : column + 8], image.transpose(1, 2, 0))
    assert (picture[18:, 9:] == 255).all()  # no sixth image
    assert (picture[8] == 255).all()  # the line between


@pytest.mark.parametrize("channels", [1, 3])
def test_hidden_patches_are_tinted_and_kept_ones_untouched(channels: int) -> None:
    given = images(channels)
    kept = np.zeros((4, 2, 2), bool)
    kept[:, 0, 1] = True
    hidden = figures.hide(given, kept)
    assert hidden.shape == (4, 3, 8, 8)
    assert hidden.dtype == np.uint8
    assert np.array_equal(hidden[:, :, :4, 4:], np.broadcast_to(given[:, :, :4, 4:], (4, 3, 4, 4)))
    assert (hidden[:, :, 4:] == figures.REMOVED[:, None, None]).all()
    assert (hidden[:, :, :, :4] == figures.REMOVED[:, None, None]).all()


def test_every_panel_of_samples_has_its_title() -> None:
    figure = figures.sample_grids({"scratch": images(), "block90": images(), "crop3": images(), "real": images()})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["scratch", "block90", "crop3", "real"]
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 1]


def test_the_figure_of_the_masks_has_the_images_and_a_row_a_mask() -> None:
    figure = figures.masks(images(), {"one": np.ones((4, 2, 2), bool), "two": np.zeros((4, 2, 2), bool)})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["training images", "one", "two"]


def test_a_saved_figure_has_the_same_bytes_again_and_leaves_nothing_else(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with figures.style():
            figure = figures.distances(measured(), COLORS)
        figures.save(figure, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "one.svg", "two.png", "two.svg"]
    for suffix in ("png", "svg"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    assert b"<svg" in (tmp_path / "one.svg").read_bytes()


def test_the_style_stays_within_its_context() -> None:
    with mpl.rc_context({"font.size": 7, "svg.hashsalt": None}):
        with figures.style():
            assert mpl.rcParams["svg.hashsalt"] == "maskdm"
        assert (mpl.rcParams["font.size"], mpl.rcParams["svg.hashsalt"]) == (7, None)
