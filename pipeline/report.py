"""DVC stage `report`: tables, figures and the answer, from the settings, the run records and the samples."""

import json

from maskdm.config.reading import load_params, load_recipe
from maskdm.datasets.prepared import PreparedData
from maskdm.reporting import figures
from maskdm.reporting.analysis import arms_table, distances, heldout_losses
from maskdm.reporting.page import CAPTIONS, markdown
from maskdm.reporting.report import WRITTEN, draw
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.files import reading, write_csv, write_text
from maskdm.runtime.paths import PREPARED, REFERENCE_RECORD, ROOT, STEP_TIME
from maskdm.tracking.records import read_records, read_step_times

REPORTS = ROOT / "reports"


def main() -> None:
    """Write `reports/`."""
    with exit_with_one_line():
        params = load_params(ROOT / "params.yaml")
        data = PreparedData.open(PREPARED)
        records = read_records(ROOT, ("pretrain", "finetune", "evaluate"))
        with reading(REFERENCE_RECORD, WRITTEN):
            reference = json.loads(REFERENCE_RECORD.read_text(encoding="utf-8"))
        times = read_step_times(STEP_TIME)
        losses = heldout_losses(params, records, times)
        measured = distances(params, records, reference, losses)
        arms = arms_table(params, records, losses, measured)
        drawn = draw(params, data, losses, measured)
        recipe = load_recipe(params.recipe, ROOT)
        text = markdown(params, recipe, data.info, records, times, arms, list(drawn))

        for name, figure in drawn.items():
            figures.save(figure, REPORTS / name)
        for name in CAPTIONS.keys() - drawn.keys():  # of an earlier report
            for suffix in ("png", "svg"):
                (REPORTS / f"{name}.{suffix}").unlink(missing_ok=True)
        for name, frame in (("arms", arms), ("heldout_loss", losses), ("distances", measured)):
            write_csv(REPORTS / f"{name}.csv", frame)
        write_text(REPORTS / "report.md", text)


if __name__ == "__main__":
    main()
