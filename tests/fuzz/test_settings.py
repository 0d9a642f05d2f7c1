"""Hostile `params.yaml`, study, tuning and recipe files: whatever they hold is used, or refused in one line."""

import copy
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from ruamel.yaml import YAML

from maskdm.config.params import Params
from maskdm.config.reading import load_params, validated
from maskdm.config.recipe import Recipe
from maskdm.config.study import Study, load_study
from maskdm.config.tuning import Tuned
from maskdm.training.plan import arm_plans
from tests.conftest import PARAMS, RECIPE
from tests.fuzz.harness import amounts, answer_of, changed_bytes, changed_tree, fuzz, randoms

# What YAML can do beyond settings: aliases that grow, tags that would call something, documents, cycles.
SNIPPETS = [
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nseeds: [*b, *b, *b, *b, *b, *b]\n",
    "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]\n" for n in range(12)) + "seeds: *a11\n",
    *("seeds: &a [*a]\n", "<<: &a {<<: *a}\n", "seeds: !!python/object/apply:os.system ['touch /tmp/owned']\n"),
    *("seeds: !!timestamp 2001-99-99\n", "seeds: !!binary '*'\n", "seeds: !!int x\n", "seeds: !!float x\n"),
    *("seeds: 2001-02-30\n", "seeds: 0x\n", "seeds: 1:99:99\n", "seeds: !!set {a, b}\n", "seeds: !!omap [1, 2]\n"),
    *("--- 1\n--- 2\n", "%YAML 9.9\n---\n", "? [a, b]\n: c\n", "? {a: b}\n: c\n", "seeds: !x 1\n", "\t\n", "- a\n"),
    *("[" * 3000, "{" * 3000, "{a: " * 3000, "- " * 2000 + "a\n", "seeds: |9\n", "\ufeffseeds: [0]\n", "a: b: c\n"),
    *("seeds: [0\n", "seeds: '\n", "seeds: *none\n", "baseline: \x00\n", "baseline: \x85\n", "seeds: ~\n", "", "\0"),
    *(f"seeds: [{'1' * 5000}]\n", "seeds: [0x" + "f" * 5000 + "]\n", "seeds: [1e999999999]\n", "1: 2\n1: 3\n"),
    *(
        "seeds: [!!bool x]\n",
        "seeds: !!null x\n",
        "seeds: !!str [1]\n",
        "!!map x\n",
        "seeds: !!merge x\n",
        "a: !!pairs x\n",
    ),
]
PART = {"question": "Does it?", "paper": "It does."} | {
    key: PARAMS[key] for key in ("seeds", "budget", "heldout", "arms", "baseline", "controls")
}
TUNED = {
    "seed": 1,
    "train_flops": 1e9,
    "trials": 4,
    "arms": {
        "patch75": {"arm": PARAMS["arms"]["patch75"], "space": {"rate": {"first": 1.0, "low": 0.1, "high": 10.0}}}
    },
}
TREES: dict[str, tuple[Any, dict[str, Any]]] = {
    "params": (Params, PARAMS),
    "recipe": (Recipe, RECIPE),
    "study": (
        Study,
        {
            "sets": {"other": {"data": PARAMS["data"], "others": {"small": PARAMS["data"]}}},
            "parts": {"one": PART, "two": PART | {"model": PARAMS["model"], "recipe": "v"}},
            "set_parts": {"three": PART | {"set": "other"}},
            "tunings": {"rates": TUNED},
            "set_tunings": {"others": TUNED | {"set": "other"}},
        },
    ),
    "tuning": (Tuned, TUNED | {"recipe": "v", "model": PARAMS["model"]}),
}

FILES = [("params.yaml", PARAMS, load_params), ("study/params.yaml", TREES["study"][1], load_study)]
RECIPE_OF_TESTS = Recipe.model_validate(RECIPE)


@pytest.mark.parametrize(("kind", "weight"), [("params", 3), ("recipe", 1), ("study", 1), ("tuning", 1)])
@amounts(250, few=2)
def test_values_of_settings(kind: str, weight: int, examples: int) -> None:
    schema, tree = TREES[kind]

    def check(random: Random) -> str:
        changed = changed_tree(copy.deepcopy(tree), random)
        return answer_of(lambda: use(validated(schema, changed, "params.yaml")))

    def use(found: Any) -> None:
        if isinstance(found, Params):  # what is taken can be planned
            for arm in found.arms:
                arm_plans(found, RECIPE_OF_TESTS, arm)

    fuzz(weight * examples, f"values of {kind}", randoms(), check)


@pytest.mark.parametrize(("name", "tree", "load"), FILES, ids=[name for name, *_ in FILES])
@amounts(300, few=4)
def test_text_of_settings(
    name: str, tree: dict[str, Any], load: Callable[[Path], object], examples: int, tmp_path: Path
) -> None:
    text = StringIO()
    YAML(typ="safe", pure=True).dump(tree, text)
    path, usual = tmp_path / "params.yaml", text.getvalue().encode()

    def check(random: Random) -> str:
        snippet = random.choice(SNIPPETS).encode(errors="surrogatepass")
        lines = usual.splitlines(keepends=True)
        lines.insert(random.randrange(len(lines)), snippet)
        path.write_bytes(random.choice([snippet, b"".join(lines), changed_bytes(usual, random)]))
        return answer_of(lambda: load(path))

    fuzz(examples, f"text of {name}", randoms(), check)
