"""The data sets that a stage may be asked for: that of `params.yaml`, or one of the study's."""

import argparse

from maskdm.config.params import Data
from maskdm.config.reading import load_params
from maskdm.config.study import load_study
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.paths import PARAMS, STUDY


def add_set(parser: argparse.ArgumentParser) -> None:
    """Let the command line name a data set of the study."""
    parser.add_argument("--set", metavar="NAME", help="one of `sets` in study/params.yaml; else that of params.yaml")


def data_of(name: str | None) -> Data:
    """The settings of the data set `name` of the study; of None: those of `params.yaml`.

    Raises:
        MaskDMError: there is none of that name, or the file of settings is not usable.
    """
    if name is None:
        return load_params(PARAMS).data
    sets = load_study(STUDY).sets
    if name not in sets:
        raise MaskDMError(f"--set {name}: allowed: {', '.join(sets) or 'none, study/params.yaml has no sets'}")
    return sets[name]
