"""`init` and `advise`: from a folder of images to settings that suit them."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from maskdm.cli.output import AsJson, print_json, print_table
from maskdm.cli.project import complete_profile, enter_project, read_params
from maskdm.runtime.paths import PARAMS


def init(
    images: Annotated[Path, typer.Argument(help="A folder of images, or a zip or tar archive.")],
    name: Annotated[str | None, typer.Option(help="Of the profile; without it, that of the folder.")] = None,
    hours: Annotated[float, typer.Option(help="What `dvc repro` may take, about.")] = 1.0,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side; without it, what suits images and machine.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at your images and write a profile for them, fitted to this machine and to your time. Nothing is trained.

    The speed of this machine comes from a burst of real training steps. The profile is written to `profiles/` and
    becomes `params.yaml`; every line of it has a comment and may be changed.

    ```sh
    maskdm init ~/Pictures/flowers --hours 2
    dvc repro
    maskdm open
    ```
    """
    images = images.absolute()  # as seen from the working folder
    enter_project()
    from maskdm.engine.init import init as propose
    from maskdm.runtime.device import choose_device  # here: no other command waits for torch

    made = propose(images, choose_device(), name, hours, image_size)
    if as_json:
        print_json(asdict(made) | {"profile": str(made.profile)})
        return
    print("\n".join([*made.found, *made.chosen, *(f"note: {line}" for line in made.notes)]))
    print(f"{PARAMS} is now {made.profile}; run it with `dvc repro`")


def advise(
    profile: Annotated[
        str | None,
        typer.Argument(help="A name in `profiles/`; without it, `params.yaml`.", autocompletion=complete_profile),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how much context each mask and coarse view leaves on the prepared images, and what it costs.

    A bound for linear denoisers, computed from the images alone: docs/advise.md says how far to trust it. Below it
    stands what the recorded comparisons gained at which budgets. Nothing is trained.

    ```sh
    maskdm advise            # after `dvc repro prepare`
    maskdm advise celeba64   # another profile
    maskdm advise --json | jq '.kinds[] | select(.on_front)'
    ```
    """
    enter_project()
    params = read_params(profile)
    from maskdm.config.reading import recipe_of

    recipe = recipe_of(params)
    from maskdm.engine import advice as advising  # here: no other command waits for torch
    from maskdm.engine.agreement import agreement
    from maskdm.reporting import expected
    from maskdm.runtime.paths import ROOT

    data = advising.open_data(params)
    found = advising.advise(params, recipe, data.train)
    agreed = agreement(params, recipe, data.train, data.info["sha256"])
    gains, budget = expected.measured_gains(ROOT, params.arms, params.baseline), params.budget.train_flops
    if as_json:
        at_budget = [one for curve in expected.curves(gains) if (one := expected.expected_at(curve, budget))]
        measured = {"measured": list(map(asdict, gains)), "expected": list(map(asdict, at_budget))}
        print_json(advising.as_json(found) | {"agreement": agreed and asdict(agreed)} | measured)
        return
    print_table(advising.as_rows(found))
    print("\n".join([*advising.explanation(found, params), *([f"Measured. {agreed.in_words()}"] if agreed else [])]))
    if gains:
        print_table(expected.as_rows(gains))
        print("\n".join(expected.in_words(gains, budget)))
