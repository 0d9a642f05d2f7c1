"""`sample` and `interpolate`: pictures from trained weights."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from maskdm.cli.output import AsJson, print_json
from maskdm.cli.project import complete_arm, enter_project, read_params

if TYPE_CHECKING:
    from maskdm.engine.weights import Weights

Source = Annotated[
    str,
    typer.Argument(
        help="An arm of `params.yaml`, `<arm>/<seed>`, a run's folder, or a folder of weights.",
        autocompletion=complete_arm,
    ),
]
Out = Annotated[Path | None, typer.Option(help="A new folder for the pictures.", resolve_path=True)]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of the sampler; without it, those of `params.yaml`.")]
Guidance = Annotated[
    float | None, typer.Option(min=0, help="Classifier-free guidance: 0 no class, 1 the class alone, more beyond it.")
]
SamplerName = Annotated[
    str | None, typer.Option("--sampler", help="Another one of the objective's: ddim, dpm_solver, euler, ...")
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="What imported weights were trained with. Others say so themselves.")
]
ClassNumber = Annotated[int | None, typer.Option("--class", min=0, help="The class of all images, from 0.")]


class Animation(StrEnum):
    """Formats of `--animation`."""

    gif = "gif"
    webp = "webp"
    none = "none"


Animated = Annotated[Animation, typer.Option("--animation", help="Format of the animation.")]


def sample(
    source: Source,
    out: Out = None,
    count: Annotated[int, typer.Option(min=1, help="Images.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise: the same seed gives the same images.")] = 0,
    class_number: ClassNumber = None,
    guidance: Guidance = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    recipe: RecipeName = None,
    animation: Animated = Animation.gif,
    as_json: AsJson = False,
) -> None:
    """Draw images from trained weights: a grid, single files, and how they come out of the noise.

    The folder gets `grid.png`, `images/00000.png`, ... and `denoising.gif`. Without `--out` it is
    `samples/<weights>-seed<seed>` in the working folder. A network with classes draws all of them in turn.

    ```sh
    maskdm sample crops                    # the arm's first trained seed
    maskdm sample crops/2 --count 64 --steps 100 --animation webp
    maskdm sample imported --recipe paper  # any folder with config.json
    maskdm sample classes --class 3 --guidance 2
    ```
    """
    here = Path.cwd()
    weights = open_weights(source, here, recipe, steps, sampler, guidance)
    from maskdm.engine.drawing import draw_samples

    folder = out or here / "samples" / f"{weights.name}-seed{seed}"
    show(folder, draw_samples(weights, folder, count, seed, class_number, format_of(animation)), as_json)


def interpolate(
    source: Source,
    seeds: Annotated[tuple[int, int], typer.Option(min=0, help="The two seeds whose first images are the ends.")] = (
        0,
        1,
    ),
    out: Out = None,
    count: Annotated[int, typer.Option(min=2, help="Images, both ends counted in.")] = 16,
    class_number: ClassNumber = None,
    guidance: Guidance = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    recipe: RecipeName = None,
    animation: Animated = Animation.gif,
    as_json: AsJson = False,
) -> None:
    """Draw the way from one image to another: the noise of two seeds and what lies between (slerp).

    The folder gets `grid.png`, `images/00000.png`, ... and `interpolation.gif`. Without `--out` it is
    `samples/<weights>-<seed>-to-<seed>` in the working folder. Smooth ways say that the network has not learnt single
    images by heart.

    ```sh
    maskdm interpolate crops --seeds 0 7
    ```
    """
    here = Path.cwd()
    weights = open_weights(source, here, recipe, steps, sampler, guidance)
    from maskdm.engine.drawing import draw_interpolation

    folder = out or here / "samples" / f"{weights.name}-{seeds[0]}-to-{seeds[1]}"
    show(folder, draw_interpolation(weights, folder, count, seeds, class_number, format_of(animation)), as_json)


def open_weights(
    source: str,
    here: Path,
    recipe: str | None,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
) -> "Weights":
    """What `source` names, with the given settings of the sampler; goes to the project's root."""
    enter_project()
    params = read_params()
    given: dict[str, Any] = {"num_inference_steps": steps, "sampler": sampler, "guidance_scale": guidance}
    changes = {key: value for key, value in given.items() if value is not None}
    if sampler not in (None, "ddim"):
        changes["eta"] = 0.0  # only ddim reads it
    from maskdm.engine.weights import Weights

    return Weights.open(source, here, params, recipe, changes)


def format_of(animation: Animation) -> Literal["gif", "webp"] | None:
    """The engine's name of a format."""
    return None if animation is Animation.none else "gif" if animation is Animation.gif else "webp"


def show(folder: Path, files: list[Path], as_json: bool) -> None:
    """Print what was written."""
    if as_json:
        print_json([str(path) for path in files])
        return
    singles = [path for path in files if path.parent != folder]
    names = ", ".join(path.name for path in files if path.parent == folder)
    print(f"{folder}: {names}, {len(singles)} images in {singles[0].parent.name}/")
