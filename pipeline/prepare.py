"""DVC stages `prepare` and `set@<name>`: the data set of `params.yaml`, or one of the study's, as one array.

python -m pipeline.prepare [--set NAME]
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskdm.config.params import Data
from maskdm.datasets.left_out import FILE, in_words
from maskdm.datasets.prepare import prepare
from maskdm.engine.sets import add_set, settings_of
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.files import expanded
from maskdm.runtime.paths import ROOT, own_project, places_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `data/prepared/`, or `data/sets/<name>/prepared/`, and print what it holds."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.prepare")
    add_set(parser)
    data_set = parser.parse_args(arguments).set
    with exit_with_one_line():
        home, (settings, _), out = own_project(), settings_of(data_set), places_of(data_set).prepared
        folders = {out: settings.data} | {out.with_name(name): data for name, data in settings.others.items()}
        for folder, data in folders.items():
            info = prepare(found(data, home), folder, home / "data" / "raw")
            print(in_one_line(info, folder))


def found(data: Data, home: Path) -> Data:
    """Look in the user's own project for a relative root that is not in the copy in which DVC runs."""
    if data.root is None or home == ROOT:
        return data
    place = expanded(data.root, "data.root")
    return data if os.path.exists(place) else data.model_copy(update={"root": str(home / place)})


def in_one_line(info: dict[str, Any], folder: Path) -> str:
    """What `dataset.json` says, for a reader of the terminal."""
    shape = "x".join(map(str, info["shape"]))
    parts = [f"{info['name']}: {info['train']} training and {info['heldout']} held-out images of {shape}"]
    if shared := info["duplicates"]["train_and_heldout"]:
        parts.append(f"{shared} training images have the pixels of a held-out one, as published")
    if info["files_found"] is not None:
        parts.append(f"{info['train'] + info['heldout']} of {info['files_found']} files used")
    if info["left_out"]:
        parts.append(f"left out: {in_words(info['left_out'])}, all names in {folder / FILE}")
    return "; ".join([*parts, f"source: {info['source']}"])


if __name__ == "__main__":
    main()
