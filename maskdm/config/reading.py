"""Reading of settings: a mistake is one line that names the file, the key, the value and what is allowed."""

import difflib
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML

from maskdm.config.params import Params
from maskdm.config.recipe import Recipe
from maskdm.config.schema import AnySchema, Schema
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reason
from maskdm.runtime.text import short

UNIONS = ("mask", "model", "objective")  # keys whose block is one of several kinds, told apart by one of its own keys


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check `params.yaml`.

    Raises:
        MaskDMError: the file is missing, is not YAML, or breaks the schema.
    """
    params = validated(Params, read_yaml(Path(path)), str(path))
    for arm, phases in params.arms.items():
        for place, phase in enumerate(phases):
            if phase.set is not None:
                raise MaskDMError(
                    f"{path}: arms.{arm}.{place}.set={phase.set}; allowed: none, it is for the study's parts"
                )
    return params


def load_recipe(name: str, root: Path = Path()) -> Recipe:
    """Read and check `profiles/recipes/<name>.yaml` below `root`.

    Raises:
        MaskDMError: there is no such recipe, or it breaks the schema.
    """
    folder = root / "profiles" / "recipes"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise MaskDMError(f"recipe={name}: there is no {path}; allowed: {known}")
    return validated(Recipe, read_yaml(path), str(path))


def recipe_of(params: Params, root: Path = Path()) -> Recipe:
    """Read and check the recipe that `params` names, for the sampler of `params`.

    Raises:
        MaskDMError: there is no such recipe, it breaks the schema, or the sampler is none of its objective.
    """
    recipe = load_recipe(params.recipe, root)
    try:
        params.sampling.check_objective(recipe.objective)
    except ValueError as error:
        raise MaskDMError(str(error)) from None
    return recipe


def load_block(schema: type[AnySchema], key: str, path: str | Path) -> AnySchema:
    """Read and check the block `key` of a file of settings; its other keys are for others to read.

    Raises:
        MaskDMError: the file is missing, is not YAML or has no such key, or the block breaks `schema`.
    """
    content = read_yaml(Path(path))
    if key not in content:
        raise MaskDMError(f"{path}: {key} is missing")
    return validated(schema, content[key], str(path), (key,))


def flat(settings: BaseModel | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `{"model.depth": 13, ...}`; a list of scalars stays one value, as text."""
    nested = settings.model_dump() if isinstance(settings, BaseModel) else settings
    pairs: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[prefix + key] = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    return pairs


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        MaskDMError: the file is missing, is not YAML, or holds no mapping.
    """
    if path.exists() and not path.is_file():
        raise MaskDMError(f"{path}: allowed: a regular file")  # of a pipe or a device reading might never end
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MaskDMError(f"{path}: no such file") from None
    except OSError:  # the system's
        raise
    except Exception as error:  # the parser lets through what dates, numbers, depths and tags raise
        raise MaskDMError(f"{path}: not valid YAML: {reason(error)}") from None
    if not isinstance(content, dict):
        raise MaskDMError(f"{path}: allowed: a YAML mapping, got {type(content).__name__}")
    return content


def validated(schema: type[AnySchema], content: Any, where: str, above: tuple[str, ...] = ()) -> AnySchema:
    """`content` as checked settings; `where` names their file or what they belong to, `above` the keys that lead there.

    Raises:
        MaskDMError: they break the schema.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        problems = [_one_line(detail, above) for detail in error.errors()]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise MaskDMError(f"{where}: {problems[0]}{more}") from None


def _one_line(detail: ErrorDetails, above: tuple[str, ...]) -> str:
    """One problem of pydantic's as `key: what is wrong; what is allowed`."""
    # A discriminated union puts its tag ("patch") into the path, behind "mask", although no such key is in the file.
    path = (*above, *detail["loc"])
    key = ".".join(str(part) for before, part in zip((None, *path), path, strict=False) if before not in UNIONS)
    message = re.sub(r"^Value error, ", "", detail["msg"])
    if detail["type"] == "extra_forbidden":
        return f"{key} is not a known key{_suggestion(str(path[-1]))}"
    if detail["type"] == "missing":
        return f"{key} is missing"
    if detail["type"] == "value_error":
        return f"{key}: {message}" if key else message
    tag = {name: str(value).replace("'", "") for name, value in detail.get("ctx", {}).items()}
    if detail["type"] == "union_tag_not_found":
        return f"{key}.{tag['discriminator']} is missing"
    if detail["type"] == "union_tag_invalid":
        return f"{key}.{tag['discriminator']}={tag['tag']}; allowed: {tag['expected_tags']}"
    return f"{key}={short(detail['input'])}: {message[0].lower()}{message[1:]}"


def _suggestion(unknown: str) -> str:
    known = {name for schema in _all_schemas() for name in schema.model_fields}
    near = difflib.get_close_matches(unknown, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _all_schemas() -> list[type[Schema]]:
    found: list[type[Schema]] = []
    pending = [Schema]
    while pending:
        subclasses = pending.pop().__subclasses__()
        found += subclasses
        pending += subclasses
    return found
