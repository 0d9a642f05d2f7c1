import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from maskdm.config.comparison import Budget, Heldout, Phase, mean_tokens, methods_in_words
from maskdm.config.masks import BlockMask, CropMask, PatchMask, effective_mask_ratio
from maskdm.config.objective import SAMPLERS, objective_name
from maskdm.config.params import Data, Params
from maskdm.config.reading import flat, load_block, load_params, load_recipe, recipe_of
from maskdm.config.recipe import Recipe
from maskdm.config.schema import Schema
from maskdm.config.study import load_study
from maskdm.runtime.errors import MaskDMError
from tests.conftest import PARAMS, RECIPE
from tests.denoisers import EDM, OBJECTIVES, objective_settings
from tests.imports import PROJECT


def write(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder / "params.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(settings, file)
    return path


def change(settings: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        settings = settings[int(parent)] if isinstance(settings, list) else settings[parent]
    settings[last] = value


@pytest.mark.parametrize("path", sorted((PROJECT / "profiles").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_is_valid_and_its_recipe_exists(path: Path) -> None:
    recipe_of(load_params(path), PROJECT)


def test_the_committed_params_are_the_default_profile() -> None:
    assert (PROJECT / "params.yaml").read_bytes() == (PROJECT / "profiles" / "default.yaml").read_bytes()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("data.image_sise", 8, "data.image_sise is not a known key; did you mean image_size?"),
        ("arms.patch75.0.mask.block", 2, "arms.patch75.0.mask.block is not a known key"),
        ("model.depth", 4, "depth=4; allowed: an odd number"),
        ("model.num_heads", 3, "num_heads=3 does not divide embed_dim=16"),
        ("model.patch_size", 3, "model.patch_size=3 does not divide data.image_size=8"),
        ("data.image_size", 12, "image_size=12; allowed: a power of two"),
        ("data.channels", 2, "data.channels=2"),
        ("data.labels", "folders", "data: labels=folders with name=digits; allowed: null"),
        ("data.labels", "", "data: labels= with name=digits; allowed: null"),
        ("data.root", "", "data: root=''; allowed: null, or a folder or an archive"),
        ("data.root", " \t", "data: root=' \\t'; allowed: null, or a folder or an archive"),
        ("model.embed_dim", "wide", "model.embed_dim='wide'"),
        ("budget.snapshots", [0.5], "allowed: ascending shares of the budget, the last 1"),
        ("budget.train_flops", -1.0, "budget.train_flops=-1.0"),
        ("arms.patch75.0.mask.ratio", 0.99, "arms.patch75[0].mask.ratio=0.99 keeps nothing (0 of 16 tokens)"),
        ("arms.patch75.0.mask.ratio", 0.01, "mask.ratio=0.01 keeps everything (16 of 16 tokens)"),
        ("arms.patch75.0.mask.ratio", 1.0, "arms.patch75.0.mask.ratio=1.0"),
        ("arms.staged.0.mask.block", 3, "mask.block=3 does not divide the 4x4 token grid; allowed: [1, 2]"),
        ("arms.staged.1.mask.crop", 4, "mask.crop=4 keeps everything or does not fit the 4x4 token grid"),
        ("arms.staged.1.mask.strategy", "stripes", "arms.staged.1.mask.strategy=stripes; allowed: patch, block, crop"),
        ("arms.staged.1.mask", {"crop": 3}, "arms.staged.1.mask.strategy is missing"),
        ("arms.staged.1.share", 0.9, "arms.staged: the shares add up to more than 1"),
        ("arms.staged.1.override", {"learning_rate": 1.0}, "override.learning_rate is not a known key"),
        ("arms.staged.1.share", None, "arms.staged[1].share is missing; only the last phase has none"),
        ("arms.staged.2.share", 0.1, "arms.staged[2].share=0.1; allowed: none, the last phase has the rest"),
        ("arms.staged.2.handover", "state", "arms.staged[2].handover=state; allowed: none, nothing comes after"),
        ("arms.staged.2.positions", False, "arms.staged.2: positions=false without a mask; allowed: true"),
        ("arms.staged", [], "arms.staged=[]"),
        ("baseline", "none", "baseline=none; allowed: a key of arms"),
        ("sampling.eta", 2.0, "sampling.eta=2.0"),
        ("sampling.guidance_scale", -1.0, "sampling.guidance_scale=-1.0"),
        ("sampling.guidance_scale", 2, "sampling.guidance_scale=2 with model.class_conditional=false; allowed: 1"),
        ("sampling.sampler", "plms", "sampling.sampler='plms'"),
        ("evaluation.kid_subset_size", 1000, "kid_subset_size=1000; allowed: at most"),
        ("seeds", [0, -1], "seeds.1=-1"),
        ("seeds", [], "seeds=[]"),
        ("seeds", [0, 3, 0], "seeds=[0, 3, 0]; allowed: each seed once"),
        ("search.finetune.share", 0.5, "search: finetune.share=0.5; allowed: none"),
        ("search.finetune.mask", {"strategy": "crop", "crop": 9}, "search: finetune.mask=strategy='crop' crop=9"),
        (
            "search.finetune.method",
            {"name": "coarse", "kind": "resolution", "factor": 2},
            "search: finetune.method=name='coarse' kind='resolution' factor=2",
        ),
        ("controls", {"whole": "patch75"}, "controls: whole; allowed: a key of arms (patch75, scratch, staged)"),
        ("controls", {"scratch": "masked"}, "controls: masked; allowed: a key of arms (patch75, scratch, staged)"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_value_and_what_is_allowed(
    tmp_path: Path, settings: dict[str, Any], key: str, value: Any, says: str
) -> None:
    change(settings, key, value)
    path = write(tmp_path, settings)
    with pytest.raises(MaskDMError) as caught:
        load_params(path)
    message = str(caught.value)
    assert says in message
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_a_missing_key_is_named(tmp_path: Path, settings: dict[str, Any]) -> None:
    del settings["model"]["depth"]
    with pytest.raises(MaskDMError, match=r"model\.depth is missing"):
        load_params(write(tmp_path, settings))


# --- controls: of `staged`, whose phases show 16 x 4 and 16 x 9 tokens, where whole images have 16 ---------------


def with_control(settings: dict[str, Any], of: str = "staged") -> None:
    """Give `staged` a rate of its own, and `of` a control that is right for `staged`."""
    settings["arms"]["staged"][0]["override"] = {"lr": 5e-3}
    first = {"share": 0.2, "batch_size": 4, "override": {"lr": 5e-3}}
    settings["arms"]["control"] = [first, {"share": 0.2, "batch_size": 9}, {"batch_size": 8}]
    settings["controls"] = {"control": of}


def test_a_control_makes_the_steps_of_its_arm_without_its_masks(tmp_path: Path, settings: dict[str, Any]) -> None:
    with_control(settings)
    params = load_params(write(tmp_path, settings))
    control, arm = params.arms["control"], params.arms[params.controls["control"]]
    assert [phase.batch_size * mean_tokens(phase, params.grid, 1) for phase in control] == [64, 144, 128]
    assert [phase.batch_size * mean_tokens(phase, params.grid, 1) for phase in arm] == [64, 144, 128]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("1.batch_size", 8, "[1].batch_size=8; allowed: 9, which hold about as many tokens as in staged, whose"),
        ("1.batch_size", 10, "[1].batch_size=10; allowed: 9, "),
        ("2.batch_size", 9, "[2].batch_size=9; allowed: 8, "),
        ("0.share", 0.3, "[0].share=0.3; allowed: 0.2, as in staged, whose control it is"),
        ("0.override", {"lr": 1e-3}, "[0].override={'lr': 0.001}; allowed: {'lr': 0.005}, as in staged, "),
        ("0.override", {}, "[0].override=none; allowed: {'lr': 0.005}, as in staged, whose control it is"),
        ("0.handover", "weights", "[0].handover=weights; allowed: none, as in staged, whose control it is"),
        ("1.mask", {"strategy": "crop", "crop": 3}, "[1].mask: 3x3 crop; allowed: none, it is the control of staged"),
        ("", [{"batch_size": 8}], ": number of phases: 1; allowed: 3, as in staged, whose control it is"),
    ],
)
def test_a_control_that_differs_in_more_than_the_masks_is_an_error(
    tmp_path: Path, settings: dict[str, Any], key: str, value: Any, says: str
) -> None:
    with_control(settings)
    change(settings, f"arms.control.{key}".removesuffix("."), value)
    path = write(tmp_path, settings)
    with pytest.raises(MaskDMError) as caught:
        load_params(path)
    assert str(caught.value).startswith(f"{path}: arms.control{says}")
    assert "\n" not in str(caught.value)


def test_an_arm_without_a_mask_has_no_control(tmp_path: Path, settings: dict[str, Any]) -> None:
    with_control(settings, of="scratch")
    with pytest.raises(
        MaskDMError, match=r"controls\.control=scratch, which has neither mask nor method; allowed: an arm that has one"
    ):
        load_params(write(tmp_path, settings))


@given(batch_size=st.integers(1, 64), side=st.integers(2, 9), crop=st.integers(1, 8), control=st.integers(1, 64))
def test_a_control_is_right_if_its_batch_is_the_nearest_in_tokens(
    batch_size: int, side: int, crop: int, control: int
) -> None:
    mask = CropMask(strategy="crop", crop=min(crop, side - 1))
    arm = (Phase(batch_size=batch_size, mask=mask, share=0.5), Phase(batch_size=8))
    own = (Phase(batch_size=control, share=0.5), Phase(batch_size=8))
    tokens, whole = batch_size * mean_tokens(arm[0], (side, side), 1), mean_tokens(own[0], (side, side), 1)
    nearest = min(abs(images * whole - tokens) for images in range(1, 65))
    right = abs(control * whole - tokens) == nearest
    arms = {"arms": {"arm": arm, "control": own}, "controls": {"control": "arm"}, "baseline": "arm"}
    params = Params.model_validate(PARAMS)
    try:
        params.model_copy(update=arms).check_network(params.model, (side, side))
    except ValueError as error:
        assert "batch_size" in str(error)  # noqa: PT017
        assert not right
    else:
        assert right


# --- recipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("objective", None, "objective=None"),
        ("objective", {"time_distribution": "uniform"}, "objective.name is missing"),
        ("objective.name", "ddqm", "objective.name=ddqm; allowed: ddpm, vp, flow, edm"),
        ("objective.beta_shedule", "linear", "objective.beta_shedule is not a known key; did you mean beta_schedule?"),
        ("objective.prediction_type", "x_0", "objective.prediction_type='x_0': input should be 'epsilon', 'v_predict"),
        ("objective.num_train_timesteps", 1, "objective.num_train_timesteps=1: input should be greater than or equal"),
        ("objective", {"name": "vp"}, "objective.prediction_type is missing"),
        ("objective", {"name": "flow"}, "objective.time_distribution is missing"),
        ("objective", {"name": "flow", "time_distribution": "cosine"}, "objective.time_distribution='cosine'"),
        ("objective", EDM | {"sigma_data": 0}, "objective.sigma_data=0: input should be greater than 0"),
        ("objective", EDM | {"sigma_min": 90.0}, "objective: sigma_min=90.0; allowed: below sigma_max (80.0)"),
        ("prediction_type", "epsilon", "prediction_type is not a known key"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(tmp_path: Path, key: str, value: Any, says: str) -> None:
    path = tmp_path / "profiles" / "recipes" / "mine.yaml"
    path.parent.mkdir(parents=True)
    raw = copy.deepcopy(RECIPE)
    change(raw, key, value)
    write(path.parent, raw).rename(path)
    with pytest.raises(MaskDMError) as caught:
        load_recipe("mine", tmp_path)
    assert str(caught.value).startswith(f"{path}: {says}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("recipe", ["tuned", "flow", "edm"])
def test_a_sampler_of_another_objective_is_refused(settings: dict[str, Any], recipe: str) -> None:
    name = load_recipe(recipe, PROJECT).objective.name
    for sampler in ("ddpm", "ddim", "dpm_solver", "unipc", "euler", "heun"):
        settings |= {"recipe": recipe, "sampling": settings["sampling"] | {"sampler": sampler}}
        params = Params.model_validate(settings)
        if sampler in SAMPLERS[name]:
            recipe_of(params, PROJECT)
            continue
        with pytest.raises(MaskDMError) as caught:
            recipe_of(params, PROJECT)
        assert str(caught.value) == (
            f"sampling.sampler={sampler} with objective={name}; allowed: {', '.join(SAMPLERS[name])}"
        )


def test_every_objective_has_a_name_in_words() -> None:
    names = {key: objective_name(objective_settings(raw)) for key, raw in OBJECTIVES.items()}
    assert len(set(names.values())) == len(names)
    assert names["linear, epsilon"] == "epsilon, linear schedule with 1000 timesteps"
    assert names["flow, logit-normal"] == "rectified flow, times logit-normal"


def test_only_a_recipe_of_another_objective_names_it() -> None:
    """Trials that were recorded when DDPM was the only one are still found."""
    assert list(Recipe.model_validate(RECIPE).flat()) == [
        *("handover", "optimisation", "num_train_timesteps", "beta_schedule", "prediction_type")
    ]
    assert Recipe.model_validate(RECIPE | {"objective": EDM}).flat()["objective"] == "edm"


@pytest.mark.parametrize("content", ["seeds: [", "- 1\n- 2\n", "seeds: [1]\nseeds: [2]\n", ""])
def test_a_file_that_is_no_yaml_mapping_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(MaskDMError) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_recipe_are_named(tmp_path: Path) -> None:
    with pytest.raises(MaskDMError, match=r"params\.yaml: no such file"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(MaskDMError, match=r"recipe=papper.*allowed: .*paper"):
        load_recipe("papper", PROJECT)


def test_no_key_has_a_name_that_dvcs_run_cache_leaves_out() -> None:
    from dvc_data.hashfile.meta import Meta

    def schemas(schema: type[Schema]) -> set[type[Schema]]:
        return {schema}.union(*(schemas(below) for below in schema.__subclasses__()))

    keys = {key for schema in schemas(Schema) for key in schema.model_fields}
    assert "crop" in keys
    assert not keys & {Meta.PARAM_SIZE, Meta.PARAM_NFILES}


@given(ratio=st.floats(0.01, 0.99), rows=st.integers(2, 16), columns=st.integers(2, 16))
def test_a_mask_keeps_some_tokens_but_not_all_or_is_rejected(ratio: float, rows: int, columns: int) -> None:
    mask = PatchMask(strategy="patch", ratio=ratio)
    try:
        kept = mask.num_keep((rows, columns))
    except ValueError as error:
        assert "keeps nothing" in str(error) or "keeps everything" in str(error)  # noqa: PT017
    else:
        assert 0 < kept < rows * columns
        assert effective_mask_ratio(mask, (rows, columns)) == pytest.approx(ratio, abs=0.5001 / (rows * columns))


@pytest.mark.parametrize(
    ("mask", "grid", "effective"),
    [
        (PatchMask(strategy="patch", ratio=0.9), (8, 8), 58 / 64),
        (BlockMask(strategy="block", ratio=0.9, block=2), (8, 8), 0.875),  # 2 of 16 blocks
        (BlockMask(strategy="block", ratio=0.9, block=4), (16, 16), 0.875),
        (CropMask(strategy="crop", crop=3), (8, 8), 1 - 9 / 64),
        (CropMask(strategy="crop", crop=5), (16, 16), 1 - 25 / 256),  # the paper's 90 %
        (None, (8, 8), 0.0),
    ],
)
def test_the_effective_ratio_counts_whole_tokens_and_blocks(mask: Any, grid: tuple[int, int], effective: float) -> None:
    assert effective_mask_ratio(mask, grid) == pytest.approx(effective)


@given(kept=st.lists(st.none() | st.integers(1, 7), min_size=1, max_size=4), whole=st.just(64))
def test_a_phase_shows_what_its_mask_keeps_and_only_masks_are_named(kept: list[int | None], whole: int) -> None:
    phases = [Phase(batch_size=1, mask=crop and CropMask(strategy="crop", crop=crop)) for crop in kept]
    assert [mean_tokens(phase, (8, 8), 1) for phase in phases] == [crop**2 if crop else whole for crop in kept]
    assert methods_in_words(phases) == " -> ".join(f"{crop}x{crop} crop" for crop in kept if crop)


def test_a_part_of_the_study_has_the_settings_of_the_project_and_a_name_of_its_own(
    tmp_path: Path, settings: dict[str, Any], params: Params
) -> None:
    keys = ("seeds", "budget", "heldout", "arms", "baseline", "controls")
    part = {key: settings[key] for key in keys} | {"seeds": [7], "question": "Why?", "paper": "it does."}
    study = load_study(write(tmp_path, {"parts": {"shares": part}, "search": "of others"}))
    assert study.params("shares", params) == params.model_copy(update={"seeds": (7,)})
    with pytest.raises(MaskDMError, match=r"parts\.default: that is the comparison of params\.yaml; allowed: another"):
        load_study(write(tmp_path, {"parts": {"default": part}}))


def test_own_images_have_the_name_of_their_folder(settings: dict[str, Any]) -> None:
    for name, root, title in (
        ("image_folder", "~/my photos", "my photos"),
        ("webdataset", "shards/cats.tar", "cats.tar"),
        ("image_folder", "$IMAGES", "IMAGES"),
        ("image_folder", None, "image_folder"),
        ("celeba", "/somewhere/celeba", "celeba"),
    ):
        assert Data.model_validate(settings["data"] | {"name": name, "root": root}).title == title


def test_a_part_may_have_one_of_the_studys_data_sets(tmp_path: Path, settings: dict[str, Any], params: Params) -> None:
    keys = ("seeds", "budget", "heldout", "arms", "baseline", "controls")
    part = {key: settings[key] for key in keys} | {"question": "Why?", "paper": "it does."}
    other = settings["data"] | {"name": "digits", "train_images": 100}
    blocks = {
        "sets": {"small": {"data": other, "reference": 90}},
        "parts": {"one": part},
        "set_parts": {"two": part | {"set": "small"}},
    }
    space = {"rate": {"first": 1.0, "low": 0.5, "high": 2.0}}
    tuned = {"seed": 1, "train_flops": 1e9, "trials": 2, "arms": {}}
    few = {"arm": [{"batch_size": 8, "set": "big"}], "space": space}
    study = load_study(write(tmp_path, blocks))
    assert study.params("one", params) == params
    own = {"data": Data.model_validate(other), "evaluation": params.evaluation.model_copy(update={"reference": 90})}
    assert study.params("two", params) == params.model_copy(update=own)
    on_set = {"set_tunings": {"rates": tuned | {"set": "small", "arms": {"few": few}}}}
    with_others = on_set | {"sets": {"small": {"data": other, "others": {"big": other}}}}
    assert load_study(write(tmp_path, blocks | with_others)).all_tunings["rates"].arms["few"].arm[0].set == "big"
    for changes, says in (
        ({"set_parts": {"two": part | {"set": "smal"}}}, r"set_parts\.two\.set=smal; allowed: small"),
        ({"set_parts": {"two": part}}, r"set_parts\.two\.set=None; allowed: small"),
        ({"parts": {"one": part | {"set": "small"}}}, r"parts\.one\.set=small; allowed: none"),
        (
            {"parts": {"one": part | {"arms": part["arms"] | {"scratch": [{"batch_size": 8, "set": "big"}]}}}},
            r"one\.arms\.scratch\.0\.set=big; allowed: none",
        ),
        ({"sets": {"small": {"data": other, "others": {"own": other}}}}, r"sets\.small\.others\.own: that is its data"),
        ({"set_parts": {"one": part | {"set": "small"}}}, r"set_parts\.one: parts has one of that name"),
        ({"tunings": {"rates": tuned | {"set": "small"}}}, r"tunings\.rates\.set=small; allowed: none"),
        ({"set_tunings": {"rates": tuned}}, r"set_tunings\.rates\.set=None; allowed: small"),
        (on_set, r"rates\.arms\.few\.arm\.0\.set=big; allowed: none"),
    ):
        with pytest.raises(MaskDMError, match=says):
            load_study(write(tmp_path, blocks | changes))


def test_a_block_of_a_file_is_read_alone_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("budget: {train_flops: -1, snapshots: [1.0]}\nother: 1\n")
    with pytest.raises(MaskDMError, match=r"study\.yaml: budget\.train_flops=-1: input should be greater than 0"):
        load_block(Budget, "budget", path)
    with pytest.raises(MaskDMError, match=r"study\.yaml: heldout is missing"):
        load_block(Heldout, "heldout", path)


def test_flat_settings_have_dotted_names_and_scalar_values(params: Params) -> None:
    pairs = flat(params.model_dump(include={"model", "budget"}))
    assert pairs["model.depth"] == 3
    assert pairs["budget.snapshots"] == "0.5,1.0"
