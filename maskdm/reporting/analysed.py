"""A comparison with what its trials say: what all pages are made from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure, SubFigure

from maskdm.config.params import Params
from maskdm.reporting import analysis, figures
from maskdm.reporting.analysis import Records
from maskdm.tracking.records import StepTimes, distance_metric


@dataclass(frozen=True)
class Analysed:
    """A comparison and what its trials say."""

    name: str
    params: Params
    data: dict[str, Any]  # of a record: name, sha256 and the like
    metric: str  # the name of the distance
    measured_with: dict[str, Any]  # of `analysis.measured_with`
    curves: pd.DataFrame
    trials: pd.DataFrame
    arms: pd.DataFrame  # of `analysis.summary`
    data_set: str | None = None  # its name in the study; None: that of `params.yaml`

    @property
    def images(self) -> str:
        """What people call its images."""
        return self.data_set or self.params.data.title

    @property
    def colors(self) -> figures.Colors:
        """Of the arms, in the order of the report."""
        return figures.arm_colors(analysis.ordered_arms(self.params), self.params.baseline, self.params.controls)

    def draw_curves(self) -> Figure:
        """Loss and distance against compute and time."""
        return figures.curves(self.curves, self.colors, self.params, self.metric)

    @property
    def against(self) -> tuple[float, Callable[[SubFigure], None]]:
        """Height and drawing of all arms' changes against the baseline, for `figures.stacked`."""
        shown = (self.arms, self.trials, self.colors, self.params, self.metric)
        return figures.against_height(len(self.arms)), lambda place: figures.draw_against(place, *shown)


def analyse(
    name: str,
    params: Params,
    records: Records,
    times: StepTimes,
    reference: Mapping[str, Any] = {},
    shorter: Sequence[pd.DataFrame] = (),
    data_set: str | None = None,
) -> Analysed:
    """Everything that the records say of one comparison.

    Raises:
        MaskDMError: a trial has no record, was measured in another way than the others, or was not timed.
    """
    curves = analysis.curves(name, params, records, times)
    measured_with = analysis.measured_with(name, params, records, reference)
    trials = analysis.trials(name, params, records, curves, shorter)
    record, _ = analysis.find_trial(name, params.baseline, params.seeds[0], records)
    metric = distance_metric(record.history[-1])
    arms = analysis.summary(trials)
    return Analysed(name, params, record.data, metric, measured_with, curves, trials, arms, data_set)
