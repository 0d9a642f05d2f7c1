"""The two searches: the small one of `dvc.yaml`, from `params.yaml`, and the study's large one."""

from dataclasses import dataclass
from pathlib import Path

from maskdm.config import Params, Search, load_block, load_params
from maskdm.records import Stage
from pipeline.paths import ROOT, STUDY, STUDY_REPORTS


@dataclass(frozen=True)
class Place:
    """Where a search has its settings and leaves its results."""

    stage: Stage  # DVC's, and that of its records
    settings: Path  # the file whose block `search` it is
    reports: Path

    def params(self) -> Params:
        """The settings of `params.yaml`, with this search's block.

        Raises:
            MaskDMError: a file is missing, or a setting is not usable.
        """
        search = load_block(Search, "search", self.settings)
        return load_params(ROOT / "params.yaml").model_copy(update={"search": search})


SMALL = Place("search", ROOT / "params.yaml", ROOT / "reports" / "search")
LARGE = Place("large_search", STUDY, STUDY_REPORTS / "search")
