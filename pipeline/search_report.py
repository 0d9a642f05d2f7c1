"""DVC stage `search_report`: what the search came to, as figures and a page, from its tables and records."""

import pandas as pd
from matplotlib.figure import Figure

from maskdm import figures, search_figures
from maskdm.config import Params, load_params
from maskdm.errors import MaskDMError, exit_with_one_line
from maskdm.files import reason, write_text
from maskdm.records import read_records
from maskdm.search_report import confirmation, markdown
from pipeline.paths import ROOT

REPORTS = ROOT / "reports" / "search"


def main() -> None:
    """Write the figures, `confirmation.csv` and `search.md` in `reports/search/`."""
    with exit_with_one_line():
        params, records = load_params(ROOT / "params.yaml"), read_records(ROOT, ("search",))
        trials, curves, importances = (read_table(name) for name in ("trials", "curves", "importance"))
        confirmed = confirmation(trials, records)
        drawn = draw(params, trials, curves, importances)
        best = (REPORTS / "best.yaml").read_text(encoding="utf-8")

        for name, figure in drawn.items():
            figures.save(figure, REPORTS / name)
        write_text(
            REPORTS / "confirmation.csv", confirmed.to_csv(index=False, float_format="%.10g", lineterminator="\n")
        )
        write_text(REPORTS / "search.md", markdown(params, trials, confirmed, best, list(drawn)))


def draw(params: Params, trials: pd.DataFrame, curves: pd.DataFrame, importances: pd.DataFrame) -> dict[str, Figure]:
    """The figures by name, in the order of the page."""
    flops = params.search.train_flops
    with figures.style():
        return {
            "history": search_figures.history(trials, flops),
            "front": search_figures.front(trials, curves, flops),
            "importance": search_figures.importance(importances),
            "parallel_coordinates": search_figures.parallel_coordinates(trials),
        }


def read_table(name: str) -> pd.DataFrame:
    """A table of the stage `search`.

    Raises:
        MaskDMError: it is missing, or is none.
    """
    path = REPORTS / f"{name}.csv"
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise MaskDMError(f"{path}: no such file; `dvc repro search` writes it") from None
    except (OSError, ValueError) as error:
        raise MaskDMError(f"{path}: cannot read it: {reason(error)}") from None


if __name__ == "__main__":
    main()
