"""DVC stage `prepare`: the data set of `params.yaml` as one array in `data/prepared`."""

from maskdm.config import load_params
from maskdm.datasets.prepare import prepare
from maskdm.errors import exit_with_one_line
from pipeline.paths import PREPARED, RAW, ROOT


def main() -> None:
    """Write `data/prepared/` and print what it holds."""
    with exit_with_one_line():
        info = prepare(load_params(ROOT / "params.yaml").data, PREPARED, RAW)
        shape = "x".join(map(str, info["shape"]))
        skipped = f", {len(info['skipped'])} unreadable ones left out" if info["skipped"] else ""
        print(
            f"{info['name']}: {info['train']} training and {info['heldout']} held-out images of {shape}{skipped}; "
            f"source: {info['source']}"
        )


if __name__ == "__main__":
    main()
