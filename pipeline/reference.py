"""DVC stages `reference` and `set_reference@<name>`: the real images that samples are compared with, and the floor.

python -m pipeline.reference [--set NAME]

The floor is what the metrics give for other real images: as many as an evaluation has samples, if there are as many.
"""

import argparse
import json
from collections.abc import Sequence

from maskdm.datasets.prepared import PreparedData
from maskdm.engine.sets import add_set, settings_of
from maskdm.evaluation.extractors import extract, load_extractor
from maskdm.evaluation.metrics import build_reference, check_reference, floor, floor_images
from maskdm.runtime.device import choose_device
from maskdm.runtime.errors import exit_with_one_line
from maskdm.runtime.files import write_atomically
from maskdm.runtime.paths import places_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `data/reference/` and `records/reference.json`, or those of one of the study's data sets."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.reference")
    add_set(parser)
    data_set = parser.parse_args(arguments).set
    with exit_with_one_line():
        _, evaluation = settings_of(data_set)
        places = places_of(data_set)
        data = PreparedData.open(places.prepared)
        # first, so that too few images are reported at once and not after minutes
        check_reference(evaluation, len(data.train))
        images, from_heldout = floor_images(data.train, data.heldout, evaluation)
        extractor = load_extractor(evaluation, choose_device())
        reference = build_reference(extractor, data.train, data.info["sha256"], evaluation)
        measured = floor(extract(extractor, images, evaluation.batch_size), reference, evaluation, seed=0)
        reference.save(places.reference)
        record = {
            "floor": measured,
            "floor_images": from_heldout,
            "floor_training_images": len(images) - from_heldout,
            "reference_images": reference.key.count,
            "extractor": extractor.name,
            "extractor_sha256": extractor.sha256,
            "input_size": extractor.input_size,
            "data_sha256": reference.key.data_sha256,
        }
        content = json.dumps(record, indent=1, sort_keys=True) + "\n"
        write_atomically(places.record, lambda file: file.write(content.encode()))


if __name__ == "__main__":
    main()
