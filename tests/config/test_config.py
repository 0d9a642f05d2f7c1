from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from maskdm.config.masks import BlockMask, CropMask, PatchMask, effective_mask_ratio
from maskdm.config.params import Budget, Heldout, Params
from maskdm.config.reading import flat, load_block, load_params, load_recipe
from maskdm.config.schema import Schema
from maskdm.runtime.errors import MaskDMError
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
    load_recipe(load_params(path).recipe, PROJECT)


def test_the_committed_params_are_the_default_profile() -> None:
    assert (PROJECT / "params.yaml").read_bytes() == (PROJECT / "profiles" / "default.yaml").read_bytes()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("data.image_sise", 8, "data.image_sise is not a known key; did you mean image_size?"),
        ("pretrain.patch75.0.mask.block", 2, "pretrain.patch75.0.mask.block is not a known key"),
        ("model.depth", 4, "depth=4; allowed: an odd number"),
        ("model.num_heads", 3, "num_heads=3 does not divide embed_dim=16"),
        ("model.patch_size", 3, "model.patch_size=3 does not divide data.image_size=8"),
        ("data.image_size", 12, "image_size=12; allowed: a power of two"),
        ("data.channels", 2, "data.channels=2"),
        ("data.labels", "folders", "data: labels=folders with name=digits; allowed: null"),
        ("data.labels", "files", "data.labels='files'"),
        ("data.root", "", "data: root=''; allowed: null, or a folder or an archive"),
        ("data.root", " \t", "data: root=' \\t'; allowed: null, or a folder or an archive"),
        ("model.embed_dim", "wide", "model.embed_dim='wide'"),
        ("budget.snapshots", [0.5], "allowed: ascending shares of the budget, the last 1"),
        ("budget.train_flops", -1.0, "budget.train_flops=-1.0"),
        ("pretrain.patch75.0.mask.ratio", 0.99, "pretrain.patch75[0].mask.ratio=0.99 keeps nothing (0 of 16 tokens)"),
        ("pretrain.patch75.0.mask.ratio", 0.01, "mask.ratio=0.01 keeps everything (16 of 16 tokens)"),
        ("pretrain.patch75.0.mask.ratio", 1.0, "pretrain.patch75.0.mask.ratio=1.0"),
        ("pretrain.staged.0.mask.block", 3, "mask.block=3 does not divide the 4x4 token grid; allowed: [1, 2]"),
        ("pretrain.staged.1.mask.crop", 4, "mask.crop=4 keeps everything or does not fit the 4x4 token grid"),
        ("pretrain.staged.1.mask.strategy", "stripes", "stripes"),
        ("pretrain.staged.1.share", 0.9, "pretrain.staged: the shares add up to more than 1"),
        ("pretrain.staged.1.override", {"learning_rate": 1.0}, "override.learning_rate is not a known key"),
        ("arms.patch75.pretrain", "block", "arms.patch75.pretrain=block; allowed: a key of pretrain"),
        ("baseline", "none", "baseline=none; allowed: a key of arms"),
        ("sampling.eta", 2.0, "sampling.eta=2.0"),
        ("sampling.sampler", "euler", "sampling.sampler='euler'"),
        ("evaluation.kid_subset_size", 1000, "kid_subset_size=1000; allowed: at most"),
        ("seed", -1, "seed=-1"),
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


def test_an_unused_pretraining_is_an_error(tmp_path: Path, settings: dict[str, Any]) -> None:
    del settings["arms"]["patch75"]
    with pytest.raises(MaskDMError, match=r"pretrain\.patch75 is used by no arm"):
        load_params(write(tmp_path, settings))


@pytest.mark.parametrize("content", ["seed: [", "- 1\n- 2\n", "seed: 1\nseed: 2\n", ""])
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
