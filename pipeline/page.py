"""DVC stage `page`: the whole answer as one file that opens from disk, from settings, records and samples."""

from maskdm.reporting.index import write_index
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.paths import ROOT
from maskdm.tracking import mlflow_store


def main() -> None:
    """Write `reports/index.html`."""
    with exit_with_one_line():
        mlflow_store.log_report(ROOT, [write_index()])


if __name__ == "__main__":
    main()
