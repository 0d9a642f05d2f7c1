"""`import-weights`: a network of MaskDM's authors as one of this suite."""

from pathlib import Path
from typing import Annotated

import typer


def import_weights(
    file: Annotated[Path, typer.Argument(help="What their training saved, `model-<n>.pt`.")],
    folder: Annotated[Path, typer.Argument(help="Where to write `config.json` and safetensors; a new folder.")],
    num_heads: Annotated[int | None, typer.Option(help="Attention heads, of a width that is not in the paper.")] = None,
) -> None:
    """Make a checkpoint of MaskDM's authors a network of this suite; it takes the EMA weights, if there are some.

    Nothing in the file is run. What is printed names the noise schedule that a recipe must have to sample it.

    ```sh
    maskdm import-weights model-20.pt imported
    ```
    """
    from maskdm.engine import import_weights as importing  # here: no other command waits for it

    print(importing.import_weights(file, folder, num_heads))
