"""DVC stage `prepare`: the data set of `params.yaml` as one array in `data/prepared`."""

from typing import Any

from maskdm.config import load_params
from maskdm.datasets.left_out import in_words
from maskdm.datasets.prepare import prepare
from maskdm.datasets.prepared import LEFT_OUT_FILE
from maskdm.errors import exit_with_one_line
from pipeline.paths import PREPARED, RAW, ROOT


def main() -> None:
    """Write `data/prepared/` and print what it holds."""
    with exit_with_one_line():
        info = prepare(load_params(ROOT / "params.yaml").data, PREPARED, RAW)
        print(in_one_line(info))


def in_one_line(info: dict[str, Any]) -> str:
    """What `dataset.json` says, for a reader of the terminal."""
    shape = "x".join(map(str, info["shape"]))
    parts = [f"{info['name']}: {info['train']} training and {info['heldout']} held-out images of {shape}"]
    if shared := info["duplicates"]["train_and_heldout"]:
        parts.append(f"{shared} training images have the pixels of a held-out one, as published")
    if info["files_found"] is not None:
        parts.append(f"{info['train'] + info['heldout']} of {info['files_found']} files used")
    if info["left_out"]:
        parts.append(f"left out: {in_words(info['left_out'])}, all names in {PREPARED / LEFT_OUT_FILE}")
    return "; ".join([*parts, f"source: {info['source']}"])


if __name__ == "__main__":
    main()
