"""The figures show what the frames say: right places, right colours, nothing drawn over or left out."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from maskdm.config.params import Params
from maskdm.reporting import analysis, figures
from maskdm.reporting.analysed import Analysed
from maskdm.reporting.analysis import AGAINST
from tests.comparison import analysed, settings

COLORS = figures.arm_colors(["scratch", "block90"], "scratch")
ORDER = ["scratch", "patch90", "block90", "control", "crop3"]


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with figures.style():
        yield


@pytest.fixture(scope="module")
def found() -> Analysed:
    return analysed(Params.model_validate(settings()))


def images(channels: int = 1, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (count, channels, 8, 8), dtype=np.uint8)


def test_arms_have_colours_of_their_own_and_the_baseline_is_dark() -> None:
    for count in (2, 9, 15):
        colors = figures.arm_colors([f"arm{i}" for i in range(count)], "arm1")
        assert len(set(colors.values())) == count
        assert colors["arm1"] == figures.BASELINE


def test_an_arm_keeps_its_colour_whichever_arm_comes_after() -> None:
    assert figures.arm_colors(["scratch", "block90", "crop3"], "scratch")["block90"] == COLORS["block90"]


def drawn(figure: Figure, panel: int, arm: str) -> Any:
    return next(line for line in figure.axes[panel].lines if line.get_label() == arm)


def curves_of(found: Analysed) -> Figure:
    colors = figures.arm_colors(analysis.ordered_arms(found.params), "scratch", found.params.controls)
    return figures.curves(found.curves, colors, found.params, found.metric)


def against_of(found: Analysed) -> Figure:
    colors = figures.arm_colors(analysis.ordered_arms(found.params), "scratch", found.params.controls)
    shown = (found.arms, found.trials, colors, found.params, found.metric)
    return figures.stacked({"": (3.0, lambda place: figures.draw_against(place, *shown))})


def test_a_curve_is_the_mean_and_its_band_the_interval(found: Analysed) -> None:
    figure = curves_of(found)
    places = product(("train_flops", "train_seconds"), ("heldout_loss", "distance"))
    for panel, (cost, measure) in enumerate(places):
        axes = figure.axes[panel]
        assert [line.get_label() for line in axes.lines] == ORDER
        assert len(axes.collections) == len(ORDER)
        for arm, band in zip(ORDER, axes.collections, strict=True):
            curve = analysis.mean_curve(found.curves, arm, measure, cost)
            assert drawn(figure, panel, arm).get_ydata() == pytest.approx(curve["mean"].to_numpy())
            reached = band.get_datalim(axes.transData)
            assert (reached.ymin, reached.ymax) == pytest.approx((curve["low"].min(), curve["high"].max()))


def test_a_control_is_dashed_in_the_colour_of_its_arm(found: Analysed) -> None:
    figure = curves_of(found)
    for panel in range(4):
        assert drawn(figure, panel, "control").get_color() == drawn(figure, panel, "block90").get_color()
        assert drawn(figure, panel, "control").get_linestyle() == "--"
        assert drawn(figure, panel, "block90").get_linestyle() == "-"
        assert drawn(figure, panel, "scratch").get_color() == figures.BASELINE
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["scratch", "patch90", "block90", "control\n(control of block90)", "crop3"]


def test_few_snapshots_are_marked(found: Analysed) -> None:
    figure = curves_of(found)
    assert [drawn(figure, panel, "scratch").get_marker() for panel in range(4)] == ["", "o", "", "o"]


def test_the_legend_lies_beside_the_panels(found: Analysed) -> None:
    figure = curves_of(found)
    figure.draw_without_rendering()  # type: ignore[no-untyped-call]
    right = max(axes.get_window_extent().x1 for axes in figure.axes)
    assert figure.legends[0].get_window_extent().x0 >= right


def test_with_one_seed_curves_have_no_bands_and_changes_no_intervals() -> None:
    found = analysed(Params.model_validate(settings() | {"seeds": [1]}))
    lines = curves_of(found)
    assert [len(axes.collections) for axes in lines.axes] == [0, 0, 0, 0]
    assert drawn(lines, 0, "block90").get_ydata()[-1] == pytest.approx(0.94 * 0.0806)
    against_of(found).draw_without_rendering()  # type: ignore[no-untyped-call]


def test_the_axis_has_a_unit_that_fits(found: Analysed) -> None:
    assert [axes.get_xlabel() for axes in curves_of(found).axes[1:3]] == [
        "training compute (TFLOPs)",
        "training time (minutes)",
    ]
    large = replace(found, curves=found.curves.assign(train_flops=1e4 * found.curves["train_flops"]))
    assert curves_of(large).axes[0].get_xlabel() == "training compute (PFLOPs)"


def test_a_stand_in_is_not_called_fid(found: Analysed) -> None:
    assert curves_of(found).axes[1].get_ylabel().startswith("fd_effnet_lite0")
    assert against_of(found).axes[1].get_xlabel().startswith("fd_effnet_lite0")


def test_a_control_stands_directly_below_its_arm(found: Analysed) -> None:
    for axes in against_of(found).axes[:1]:
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == ["patch90", "block90", "control\n(control of block90)", "crop3"]
        assert axes.yaxis_inverted()


def test_changes_are_dots_means_and_intervals(found: Analysed) -> None:
    rows = found.arms.set_index("arm")
    for axes, measure in zip(against_of(found).axes, ("heldout_loss", "distance"), strict=True):
        column = f"{measure}{AGAINST}"
        for place, arm in enumerate(ORDER[1:]):
            dots, span, mean = (np.asarray(line.get_xdata()) for line in axes.lines[3 * place : 3 * place + 3])
            own = found.trials.loc[found.trials["arm"] == arm, column]
            assert dots == pytest.approx(100 * (own.to_numpy() - 1))
            ends = rows.loc[arm, [f"{column}_low", f"{column}_high"]].to_numpy(float)
            assert span == pytest.approx(100 * (ends - 1))
            assert mean == pytest.approx(100 * (rows[column][arm] - 1))


def test_an_arm_far_from_the_others_is_written_at_the_edge_and_squeezes_none(found: Analysed) -> None:
    far = found.arms["arm"] == "crop3"
    arms = found.arms.copy()
    for end in ("", "_low", "_high"):
        arms.loc[far, f"heldout_loss{AGAINST}{end}"] = 1.57
    arms.loc[arms["arm"].isin(["patch90", "block90", "control"]), f"heldout_loss{AGAINST}"] = 0.99
    loss, distance = against_of(replace(found, arms=arms)).axes
    assert [text.get_text() for text in loss.texts] == ["+57 %"]
    assert max(abs(limit) for limit in loss.get_xlim()) < 10
    assert not distance.texts


def test_an_arm_is_drawn_where_the_intervals_of_level_ones_are_as_wide() -> None:
    changes = np.array([[-0.6, -7.6, 6.3], [-10.4, -19.5, -1.2], [-0.4, -8.5, 7.6]])  # of the study, at 1 TFLOP
    assert not figures.too_far(changes).any()
    one_seed = np.array([[-1.0, np.nan, np.nan], [57.0, np.nan, np.nan], [-2.0, np.nan, np.nan]])
    assert figures.too_far(one_seed).tolist() == [False, True, False]


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
    hidden = figures.seen(given, kept, factor=1, faded=False)
    assert hidden.shape == (4, 3, 8, 8)
    assert hidden.dtype == np.uint8
    assert np.array_equal(hidden[:, :, :4, 4:], np.broadcast_to(given[:, :, :4, 4:], (4, 3, 4, 4)))
    assert (hidden[:, :, 4:] == figures.REMOVED[:, None, None]).all()
    assert (hidden[:, :, :, :4] == figures.REMOVED[:, None, None]).all()


def test_patches_that_some_blocks_see_shine_through_the_tint() -> None:
    given, kept = np.zeros((4, 1, 8, 8), np.uint8), np.zeros((4, 2, 2), bool)
    faded = figures.seen(given, kept, factor=1, faded=True)
    assert (faded == (figures.FADED * figures.REMOVED[:, None, None]).round()).all()


def test_coarse_tokens_are_averages_of_their_pixels() -> None:
    given = images()
    coarse = figures.seen(given, None, factor=4, faded=False)
    assert coarse.shape == given.shape
    assert (coarse[:, :, :4, :4] == given[:, :, :4, :4].mean(axis=(2, 3), keepdims=True).round()).all()


def test_every_panel_of_samples_has_its_title() -> None:
    figure = figures.sample_grids({"scratch": images(), "block90": images(), "crop3": images(), "real": images()})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["scratch", "block90", "crop3", "real"]
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 1]


def test_the_figure_of_the_masks_has_the_images_and_a_row_a_mask() -> None:
    figure = figures.masks({"training images": images(), "one": images(3), "two": images()})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["training images", "one", "two"]


def test_a_saved_figure_has_the_same_bytes_again_and_leaves_nothing_else(found: Analysed, tmp_path: Path) -> None:
    for name in ("one", "two"):
        with figures.style():
            figure = curves_of(found)
        figures.save(figure, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_the_style_stays_within_its_context() -> None:
    with mpl.rc_context({"font.size": 7}):
        with figures.style():
            assert mpl.rcParams["font.size"] == 10
        assert mpl.rcParams["font.size"] == 7
