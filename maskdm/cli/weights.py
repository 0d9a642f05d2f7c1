"""`export` and `import-weights`: trained weights for other programs, and from MaskDM's authors."""

from pathlib import Path
from typing import Annotated

import typer

from maskdm.cli.output import AsJson, print_json
from maskdm.cli.sampling import Out, RecipeName, SamplerName, Source, open_weights


def export(
    source: Source,
    out: Out = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write `network.onnx` too, checked with ONNX Runtime; needs `maskdm[onnx]`.")
    ] = False,
    sampler: SamplerName = None,
    recipe: RecipeName = None,
    as_json: AsJson = False,
) -> None:
    """Write trained weights as a pipeline of diffusers: config, safetensors, and how they are sampled.

    Without `--out` the folder is `exports/<weights>` in the working folder. In Python, with this package installed:
    `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)(num_images=4).images`.

    ```sh
    maskdm export crops
    maskdm export crops/2 --out for-the-web --onnx
    ```
    """
    here = Path.cwd()
    weights = open_weights(source, here, recipe, sampler=sampler)
    from maskdm.engine import export as exporting

    folder = out or here / "exports" / weights.name
    files = exporting.export(weights, folder, onnx)
    if as_json:
        print_json([str(path) for path in files])
        return
    print(f"{folder}: {', '.join(str(path.relative_to(folder)) for path in files)}")


def import_weights(
    file: Annotated[Path, typer.Argument(help="What their training saved, `model-<n>.pt`.")],
    folder: Annotated[Path, typer.Argument(help="Where to write `config.json` and safetensors; a new folder.")],
    num_heads: Annotated[int | None, typer.Option(help="Attention heads, of a width that is not in the paper.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a checkpoint of MaskDM's authors a network of this suite; it takes the EMA weights, if there are some.

    Nothing in the file is run. What is printed names the noise schedule that a recipe must have to sample it.

    ```sh
    maskdm import-weights model-20.pt imported
    ```
    """
    from maskdm.engine import import_weights as importing  # here: no other command waits for it

    found = importing.import_weights(file, folder, num_heads)
    if as_json:
        print_json({"folder": str(folder.resolve()), "found": found})
        return
    print(f"{folder}: {found}")
