"""`evaluate`: how far images are from real ones."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskdm.cli.output import AsJson, print_json, print_table
from maskdm.cli.project import complete_arm, enter_project, read_params
from maskdm.cli.sampling import RecipeName, SamplerName, Steps, open_weights
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.units import four_digits

if TYPE_CHECKING:
    from maskdm.engine.measuring import Measured

BETTER = {"precision": "higher", "recall": "higher", "density": "higher", "coverage": "higher", "nearest": "not 0"}


def evaluate(
    first: Annotated[
        str,
        typer.Argument(
            help="What is judged: a folder of images, an arm, `<arm>/<seed>`, or a folder of weights.",
            autocompletion=complete_arm,
        ),
    ],
    second: Annotated[
        Path | None,
        typer.Argument(
            help="The real images: a folder or an archive. Without it, weights meet the profile's reference.",
            resolve_path=True,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples of weights.")] = 0,
    count: Annotated[
        int | None, typer.Option(min=2, help="Images to judge; without it, `evaluation.samples` of `params.yaml`.")
    ] = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    recipe: RecipeName = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far images are from real ones, with all metrics, and the floor beside them.

    The floor is what real images get against other real images: no sample does better than that, but for chance. Images
    of folders are brought to the size of `params.yaml`, as training images are. Distances depend on the number of
    images, so compare only those with the same numbers.

    ```sh
    maskdm evaluate crops                      # an arm against the profile's reference
    maskdm evaluate mine/ real/                # two folders of images
    maskdm evaluate runs/finetune/crops/1 real.zip
    ```
    """
    here = Path.cwd()
    enter_project()
    params = read_params()
    if count is not None:
        subset = min(count, params.evaluation.kid_subset_size)
        changes = {"samples": count, "kid_subset_size": subset}
        params = params.model_copy(update={"evaluation": params.evaluation.model_copy(update=changes)})
    from maskdm.engine.measuring import measure_folders, measure_weights
    from maskdm.engine.weights import names_weights

    if names_weights(first, here, params):
        found = measure_weights(open_weights(first, here, recipe, steps, sampler), params, seed, second)
    elif second is None:
        raise MaskDMError(
            f"{first}: neither weights nor an arm; allowed: {', '.join(params.arms)}, <arm>/<seed>, a folder of "
            "weights, or a folder of images with one to compare it with"
        )
    else:
        found = measure_folders(here / first, second, params)
    if as_json:
        print_json(asdict(found))
    else:
        _print(found)


def _print(found: "Measured") -> None:
    rows = [
        {
            "measure": name,
            "value": four_digits(value),
            "floor": four_digits(found.floor[name]) if name in found.floor else "",
            "better": BETTER.get(name, "lower"),
        }
        for name, value in found.metrics.items()
    ]
    print_table(rows)
    print(
        f"{found.images} images against {found.reference_images} real ones; the floor: {found.floor_images} real "
        f"images against {found.floor_reference_images} others; {found.extractor}, {found.input_size} pixels a side"
    )
