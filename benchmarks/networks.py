"""Where masking saves compute and where it cannot: a masked step against a dense one, of every network.

`python -m benchmarks.networks` prints a table. The networks see 32x32 images as the default profile does, 8x8 tokens of
4x4 pixels, and cost about as much an image.
"""

import dataclasses
from statistics import median

import torch

from benchmarks.machine import interleaved, matmul_gflops
from maskdm.config.masks import CropMask, Mask, PatchMask
from maskdm.config.method import Group
from maskdm.config.params import Params
from maskdm.config.reading import load_params, load_recipe
from maskdm.engine.dry_run import training_step
from maskdm.methods.method import Trainee
from maskdm.runtime.device import choose_device
from maskdm.training.plan import PhasePlan, build_network, group_flops, plan_finetune

ROUNDS = 15
BATCH = 64  # of all steps: what an image costs is asked
TRANSFORMER = {"patch_size": 4, "embed_dim": 96, "num_heads": 3, "class_conditional": False}
UNET = {"name": "unet", "patch_size": 4, "layers_per_block": 1, "class_conditional": False}
NETWORKS = {
    "uvit": TRANSFORMER | {"depth": 5},
    "dit": TRANSFORMER | {"name": "dit", "depth": 6},
    "unet": UNET | {"block_out_channels": [16, 16, 32], "attention_levels": [2]},
    "unet, convolutions alone": UNET | {"block_out_channels": [16, 16, 32], "attention_levels": []},
}
MASKS: dict[str, Mask | None] = {
    "dense": None,
    "crop 4x4": CropMask(strategy="crop", crop=4),
    "patch 75 %": PatchMask(strategy="patch", ratio=0.75),
}


def main() -> None:
    """Print the table."""
    print(table())


def table() -> str:
    """A markdown table; all steps of a network in turn, so that they compare whatever the machine does meanwhile."""
    lines = [
        "| network | parameters | mask | MFLOPs an image | of dense | ms a step | of dense | GFLOP/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    before = matmul_gflops()
    for name in NETWORKS:
        params = settings(name)
        plans = {mask: phase(params, MASKS[mask]) for mask in MASKS if sees(params, MASKS[mask])}
        recipe, device = load_recipe("paper"), choose_device()  # AdamW: an update costs the same with any mask
        seconds = interleaved(
            {mask: training_step(params, recipe, plan, device) for mask, plan in plans.items()}, ROUNDS
        )
        with torch.device("meta"):
            size = build_network(params.model, params.data, None).num_parameters()
        for mask, plan in plans.items():
            saved = plan.flops_per_image / plans["dense"].flops_per_image
            ratio = median(own / dense for own, dense in zip(seconds[mask], seconds["dense"], strict=True))
            took = median(seconds[mask])
            lines.append(
                f"| {name} | {size / 1e3:.0f} k | {mask} | {plan.flops_per_image / 1e6:.0f} | {saved:.3f} "
                f"| {1e3 * took:.0f} | {ratio:.3f} | {plan.step_flops / took / 1e9:.0f} |"
            )
    lines.append(f"\nBatch {BATCH}; a float32 matrix product runs at {max(before, matmul_gflops()):.0f} GFLOP/s.")
    return "\n".join(lines)


def settings(name: str) -> Params:
    """The default profile with another network, and one dense arm."""
    default = load_params("profiles/default.yaml").model_dump()
    arms = {"arms": {"scratch": [{"batch_size": BATCH}]}, "baseline": "scratch", "controls": {}}
    budget = default["budget"] | {"train_flops": 1e18}  # whole steps of any of the networks fit it
    return Params.model_validate(default | arms | {"model": NETWORKS[name], "budget": budget})


def sees(params: Params, mask: Mask | None) -> bool:
    """Whether the network can see what the mask leaves."""
    try:
        if mask:
            params.model.check_mask(mask)
    except ValueError:
        return False
    return True


def phase(params: Params, mask: Mask | None) -> PhasePlan:
    """A dense phase, or one with a mask, of batches of the same size."""
    plan = plan_finetune(params, load_recipe("paper"), params.baseline)
    if mask is None:
        return plan
    with torch.device("meta"):
        network = build_network(params.model, params.data, None)
    cost = group_flops(Trainee(network, plan.method), Group(1, mask))
    return dataclasses.replace(plan, mask=mask, flops_per_image=cost)


if __name__ == "__main__":
    main()
