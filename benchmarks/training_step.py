"""Images a second of the real training step, dense and masked, and its share of the machine's matrix product rate.

`python -m benchmarks.training_step [--profile CASE]` prints a table; with a case, where the time of its step goes.
"""

import argparse
import dataclasses
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import interleaved, matmul_gflops
from maskdm.config.masks import PatchMask
from maskdm.config.method import Group
from maskdm.config.params import Params
from maskdm.config.reading import load_params, load_recipe
from maskdm.engine.dry_run import training_step
from maskdm.methods.method import Trainee
from maskdm.runtime.device import choose_device
from maskdm.training.plan import PhasePlan, build_network, group_flops, plan_finetune

ROUNDS = 5
RATIOS = (0.0, 0.5, 0.75, 0.9)
# name: pixels, channels, (patch, width, depth, heads), batch size dense and masked
NETWORKS = {
    "default": (32, 1, (4, 96, 5, 3), 64, 256),
    "4 M, 64 px": (64, 3, (4, 192, 9, 6), 32, 128),
    "small, 44 M, 64 px": (64, 3, (4, 512, 13, 8), 8, 32),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", metavar="CASE", help="e.g. 'default, 90 %%'")
    cases = {
        f"{name}, {f'{ratio:.0%}'.replace('%', ' %') if ratio else 'dense'}": (name, ratio)
        for name in NETWORKS
        for ratio in RATIOS
    }
    chosen = parser.parse_args().profile
    if chosen is None:
        print(table())
    elif chosen in cases:
        print(where_time_goes(*cases[chosen]))
    else:
        parser.error(f"no case {chosen!r}; allowed: {'; '.join(cases)}")


def table() -> str:
    """A markdown table: all cases of a network in turn, so that they compare whatever the machine does meanwhile."""
    lines = [
        "| network | tokens removed | batch | images/s | GFLOP/s | of matmul rate (GFLOP/s) | of FLOP-ideal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        plans = {ratio: phase(name, ratio)[1] for ratio in RATIOS}
        steps = {
            str(r): training_step(phase(name, r)[0], load_recipe("tuned"), plans[r], choose_device()) for r in RATIOS
        }
        before = matmul_gflops()
        seconds = interleaved(steps, ROUNDS)
        matmul = max(before, matmul_gflops())
        rates = {r: plans[r].step_flops / median(seconds[str(r)]) / 1e9 for r in RATIOS}
        for ratio, plan in plans.items():
            images = plan.batch_size / median(seconds[str(ratio)])
            lines.append(
                f"| {name} | {plan.removed:.1%} | {plan.batch_size} | {images:.1f} | {rates[ratio]:.0f} "
                f"| {rates[ratio] / matmul:.2f} ({matmul:.0f}) | {rates[ratio] / rates[0.0]:.2f} |"
            )
    return "\n".join(lines)


def where_time_goes(name: str, ratio: float) -> str:
    """The profile of some steps, by operator."""
    params, plan = phase(name, ratio)
    step = training_step(params, load_recipe("tuned"), plan, choose_device())
    step()
    with profile(activities=[ProfilerActivity.CPU]) as measured:
        for _ in range(ROUNDS):
            step()
    return str(measured.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=50))


def phase(name: str, ratio: float) -> tuple[Params, PhasePlan]:
    """The default profile with another network, and a phase that removes `ratio` of its tokens."""
    pixels, channels, (patch, width, depth, heads), dense, masked = NETWORKS[name]
    default = load_params("profiles/default.yaml")
    data = default.data.model_copy(update={"image_size": pixels, "channels": channels})
    shape = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    budget = default.budget.model_copy(update={"train_flops": 1e18})  # whole steps of any of the networks fit it
    params = default.model_copy(
        update={"data": data, "model": default.model.model_copy(update=shape), "budget": budget}
    )
    plan = plan_finetune(params, load_recipe("tuned"), params.baseline)
    if not ratio:
        return params, dataclasses.replace(plan, batch_size=dense)
    mask = PatchMask(strategy="patch", ratio=ratio)
    tokens = params.grid[0] * params.grid[1]
    kept = mask.num_keep(params.grid)
    with torch.device("meta"):
        trainee = Trainee(build_network(params.model, params.data, num_classes=None), plan.method)
    cost = group_flops(trainee, Group(1, mask))
    return params, dataclasses.replace(
        plan, mask=mask, batch_size=masked, flops_per_image=cost, removed=1 - kept / tokens
    )


if __name__ == "__main__":
    main()
