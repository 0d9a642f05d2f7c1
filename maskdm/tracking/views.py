"""What MLflow's UI opens on: a note for the experiment, and saved views with the columns and charts that matter."""

import json

NOTE = """\
Each row is an **arm** with its means over the seeds; **+** opens its trials. *Views* (top right) → **Arms** has the \
columns and charts that matter, for the comparison of `params.yaml`; *Arms of all comparisons* adds study and searches.

- All arms of a comparison cost the same compute, `train_flops`. Metrics ending in `_by_gflops` have compute as their \
step, all others images seen.
- `heldout_loss` is of unmasked images, whatever an arm masks. Lower is better, as for the distance (`fid` or \
`fd_...`) and `kid`; higher is better for `precision`, `recall`, `density` and `coverage`. `nearest` is near 0 where \
samples are copies of training images. Columns ending in `_sd` are the standard deviation over the seeds.
- For one part of the study, search for ``tags.`maskdm.comparison` = 'share'``.
- What differs between arms: select them, *Compare*, then *Show diff only*.
"""


def saved_view(name: str, condition: str) -> str:
    """A saved view in the form that MLflow's own *Views* menu writes: which runs, columns of the table, and charts."""
    compared = ("heldout_loss", "fd_effnet_lite0", "fid", "kid")  # of a distance that is not measured nothing is shown
    judged = (*compared, "precision", "recall", "density", "coverage", "nearest")
    metrics = ("seeds", *judged, "images_seen", "train_flops", *(f"{name}_sd" for name in compared))
    params = ("method", "mask.strategy", "mask.effective_ratio", "mask.size", "batch_size", "steps", "lr")
    columns = [f"metrics.`{name}`" for name in metrics] + [f"params.`{name}`" for name in params]
    # Not `train_flops` as the axis of the metrics themselves: MLflow pairs the two wrongly as soon as runs are grouped.
    curve = {"type": "LINE", "xAxisScaleType": "linear", "lineSmoothness": 0, "useGlobalLineSmoothing": False}
    charts = [curve | {"metricKey": f"{name}_by_gflops"} for name in compared]
    charts += [{"type": "BAR", "metricKey": name} for name in judged]
    state = {
        "searchFilter": condition,
        "selectedColumns": columns,
        "columnOrder": columns,
        "compareRunCharts": [{"uuid": str(n), "metricSectionId": "0", **chart} for n, chart in enumerate(charts)],
        "compareRunSections": [{"uuid": "0", "name": "Comparison", "display": True, "isReordered": True}],
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL",
    }
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


EXPERIMENT_TAGS = {
    "mlflow.note.content": NOTE,
    "mlflow.sharedViewState.arms": saved_view("Arms", "tags.`maskdm.comparison` = 'default'"),
    "mlflow.sharedViewState.all": saved_view("Arms of all comparisons", ""),
}
