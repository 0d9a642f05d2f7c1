"""The data sets that a stage may be asked for: that of `params.yaml`, or one of the study's."""

import argparse

from maskdm.config.params import Evaluation
from maskdm.config.reading import load_params
from maskdm.config.study import DataSet, load_study
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import PARAMS, STUDY


def add_set(parser: argparse.ArgumentParser) -> None:
    """Let the command line name a data set of the study."""
    parser.add_argument("--set", metavar="NAME", help="one of `sets` in study/params.yaml; else that of params.yaml")


def settings_of(name: str | None) -> tuple[DataSet, Evaluation]:
    """The data set `name` of the study and how samples are compared with it; of None: those of `params.yaml`.

    Raises:
        MaskDMError: there is none of that name, or a file of settings is not usable.
    """
    params = load_params(PARAMS)
    if name is None:
        return DataSet(data=params.data), params.evaluation
    study = load_study(STUDY)
    if name not in study.sets:
        raise MaskDMError(f"--set {name}: allowed: {', '.join(study.sets) or 'none, study/params.yaml has no sets'}")
    return study.sets[name], study.evaluation(name, params)
