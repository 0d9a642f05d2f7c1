"""`doctor`: what a run needs, and what is wrong with it here."""

from dataclasses import asdict

import typer

from maskdm.cli.output import AsJson, print_json, print_table
from maskdm.cli.project import enter_project


def doctor(as_json: AsJson = False) -> None:
    """Check all that a run needs: what is wrong, and the fix. Nothing is changed.

    Python, packages against `constraints.txt`, GPU, disk, settings, data, reference, DVC with its lock file, records,
    MLflow's store. The status is 1 if something is wrong; a hint alone leaves it 0.

    ```sh
    maskdm doctor
    maskdm doctor --json | jq '.[] | select(.verdict == "wrong")'
    ```
    """
    enter_project()
    from maskdm.engine.doctor import examine

    findings = examine()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table([{name: str(value) for name, value in asdict(finding).items()} for finding in findings])
    if any(finding.verdict == "wrong" for finding in findings):
        raise typer.Exit(1)
