"""What a training step of a GPU profile costs on this GPU, and where its time goes.

`python -m benchmarks.gpu PART[:PROFILE] ... [--json FILE]` prints a line of JSON a measurement. PART is one of

    ceilings   what the card reaches at best: matrix products and copies
    steps      every kind of phase of a profile: images/s, FLOP/s, memory
    where      the kernels of a dense and of a masked step
    variants   these steps without determinism, in other batches, and with Muon
    passes     every kind of phase, eager and as a CUDA graph
    compiled   a dense and a masked step with torch.compile, too
    memory     what every kind of phase holds, or that it does not fit
    heldout    the held-out loss
    sampling   one step of the sampler, in three precisions

Steps take turns, each waits for the GPU, and the median counts. Images are random; nothing is read from disk.
"""

import argparse
import gc
import json
import re
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from maskdm.config.params import Params, Sampling
from maskdm.config.reading import load_params, load_recipe
from maskdm.config.recipe import Recipe
from maskdm.engine.dry_run import training_step
from maskdm.evaluation.sampling import make_sampler
from maskdm.runtime.device import choose_device
from maskdm.runtime.seeding import generator
from maskdm.training import loop as training
from maskdm.training.heldout import HeldoutLoss
from maskdm.training.objective import make_objective
from maskdm.training.passes import EagerPasses, RecordedPasses, compile_parts
from maskdm.training.plan import PhasePlan, build_network, plan_finetune, plan_pretrain

Row = dict[str, Any]
KINDS = {  # of a kernel, by its name; the first that fits
    "attention": r"flash|fmha|cudnn.*(sdpa|attn)|mem_eff|AttentionKernel",
    "matrix products": r"gemm|nvjet|cutlass|xmma|splitK|cublas",
    "filling new memory": r"FillFunctor",
    "casts and copies": r"copy_kernel|LoadWithCast|memcpy|Memcpy",
    "layer norm": r"layer_norm|LayerNorm|GammaBeta",
    "GELU": r"[Gg]elu",
    "concatenation": r"CatArray",
    "AdamW": r"FusedAdam",
    "averaging (EMA)": r"[Ll]erp",
    "gradient norm and clipping": r"LpNorm|multi_tensor_apply|PowerNorm",
    "sums": r"reduce_kernel",
    "residual and bias additions": r"CUDAFunctor_add|CUDAFunctorOnSelf_add|AddFunctor",
}
DEVICE = choose_device()
ON_GPU = DEVICE.type == "cuda"


class Step:
    """One kind of phase: a call makes a real training step and waits for its end."""

    def __init__(self, params: Params, recipe: Recipe, plan: PhasePlan) -> None:
        self.plan = plan
        self.call = training_step(params, recipe, plan, DEVICE)
        names = self.call.__code__.co_freevars
        self.of = dict(zip(names, (cell.cell_contents for cell in self.call.__closure__ or ()), strict=True))
        self.trainer: training.PhaseTrainer = self.of["trainer"]

    def __call__(self) -> None:
        """One more step, and wait for its end."""
        self.call()

    def launch(self) -> None:
        """A step that is not waited for."""
        self.trainer.train_step(self.of["images"], self.of["labels"])


def main() -> None:
    """Measure and print."""
    parts: dict[str, Callable[..., Iterator[Row]]] = {
        "ceilings": ceilings,
        "steps": steps,
        "where": where,
        "variants": variants,
        "passes": passes,
        "compiled": compiled,
        "memory": memory,
        "heldout": heldout,
        "sampling": sampling,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="PART[:PROFILE]")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for task in arguments.tasks:
        part, _, name = task.partition(":")
        began = time.perf_counter()
        try:
            for row in parts[part](*([name] if name else [])):
                report(arguments.json, {"part": part, "profile": name, **row})
        except Exception:  # the other parts can be measured all the same
            report(arguments.json, {"part": part, "profile": name, "failed": traceback.format_exc()})
        report(arguments.json, {"part": part, "profile": name, "took_s": time.perf_counter() - began})
        free()


def report(path: Path | None, row: Row) -> None:
    """Print a row, and add it to the file."""
    print(json.dumps(row), flush=True)
    if path:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def wait() -> None:
    """For the GPU."""
    if ON_GPU:
        torch.cuda.synchronize()


def free() -> None:
    """Give memory back, and count its peak anew."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def fill_new_memory(fill: bool) -> None:
    """Whether deterministic torch fills what it allocates, so that a read of it would be seen."""
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes, to the end of what it starts on the GPU."""
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started


def phases(profile_name: str) -> tuple[Params, Recipe, dict[str, PhasePlan]]:
    """The distinct phases of a profile: `dense`, and those before the last of an arm, by its name."""
    params = load_params(Path("benchmarks" if profile_name == "methods" else "profiles") / f"{profile_name}.yaml")
    recipe = load_recipe(params.recipe, Path())
    plans = {"dense": plan_finetune(params, recipe, params.baseline)}
    for arm in params.arms:
        for index, plan in enumerate(plan_pretrain(params, recipe, arm)):
            known = [(p.method, p.mask, p.batch_size) for p in plans.values()]
            if (plan.method, plan.mask, plan.batch_size) not in known:
                plans[arm if index == 0 else f"{arm}, phase {index + 1}"] = plan
    return params, recipe, plans


# --- the parts ----------------------------------------------------------------------------------------------


def ceilings() -> Iterator[Row]:
    """The card, and its best rates on random data."""
    row: Row = {"torch": torch.__version__, "device": "cpu"}
    if ON_GPU:
        about = torch.cuda.get_device_properties(DEVICE)
        row |= {
            "device": about.name,
            "memory_GB": about.total_memory / 1e9,
            "multiprocessors": about.multi_processor_count,
        }
        row |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    yield row
    side = 8192 if ON_GPU else 256
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"),
        ("float32", torch.float32, "highest"),
        ("float32 as TF32", torch.float32, "high"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
        out = torch.empty(side, side, device=DEVICE, dtype=dtype)
        found = [seconds(partial(torch.mm, a, b, out=out)) for _ in range(15)][5:]
        yield {"matrix product": name, "side": side, "TFLOP/s": 2 * side**3 / median(found) / 1e12}
    torch.set_float32_matmul_precision("highest")
    source = torch.randn(2**30 if ON_GPU else 2**20, device=DEVICE)
    target = torch.empty_like(source)
    found = [seconds(partial(target.copy_, source)) for _ in range(15)][5:]
    yield {"copy": "device to device", "GB": source.nbytes / 1e9, "TB/s": 2 * source.nbytes / median(found) / 1e12}


def steps(profile_name: str, rounds: int = 20) -> Iterator[Row]:
    """Speed and memory of every kind of phase."""
    params, recipe, plans = phases(profile_name)
    memory: dict[str, Row] = {}
    for name, plan in list(plans.items()):
        memory[name] = peak(params, recipe, plan)
        yield {"phase": name, "batch_size": plan.batch_size, **memory[name]}  # now, in case that it is stopped
        if "peak_GB" not in memory[name]:
            del plans[name]
    free()
    taken = {name: Step(params, recipe, plan) for name, plan in plans.items()}
    for _ in range(3):
        for step in taken.values():
            step()
    if any(plan.step_flops > 5e13 for plan in plans.values()):
        rounds = 8
    found: dict[str, list[float]] = {name: [] for name in taken}
    for _ in range(rounds):
        for name, step in taken.items():
            found[name].append(seconds(step))
    for name, step in taken.items():
        wait()
        started = time.perf_counter()
        for _ in range(rounds):
            step.launch()
        launched = (time.perf_counter() - started) / rounds
        wait()
        together = (time.perf_counter() - started) / rounds
        plan, took = step.plan, median(found[name])
        tokens = (1 - plan.removed) * params.grid[0] * params.grid[1]
        yield {
            "phase": name,
            "batch_size": plan.batch_size,
            "tokens": tokens,
            "step_TFLOP": plan.step_flops / 1e12,
            "step_ms": took * 1e3,
            "step_ms_spread": [min(found[name]) * 1e3, max(found[name]) * 1e3],
            "images_per_second": plan.batch_size / took,
            "TFLOP/s": plan.step_flops / took / 1e12,
            "share_of_989": plan.step_flops / took / 989e12,
            "step_ms_unwaited": together * 1e3,
            "launch_ms": launched * 1e3,
            "TFLOP/s_unwaited": plan.step_flops / together / 1e12,
            **memory[name],
            "of_flop_ideal": plan.step_flops / took / (plans["dense"].step_flops / median(found["dense"]))
            if "dense" in found
            else None,
        }


def where(profile_name: str, count: int = 3) -> Iterator[Row]:
    """The kernels of a dense and of the first masked step, by kind and by name."""
    params, recipe, plans = phases(profile_name)
    for name in [key for key in plans if key == "dense" or plans[key].mask][:2]:
        step = Step(params, recipe, plans[name])
        eager(step)  # a graph hides its kernels' names on the CPU
        with named_parts():
            for _ in range(4):
                step()
            activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if ON_GPU else [])
            with profile(activities=activities) as measured:
                for _ in range(count):
                    step.launch()
                wait()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            measured.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        yield {"phase": name, **summary(events, count)}
        del step, measured
        free()


def summary(events: list[dict[str, Any]], count: int) -> Row:
    """Milliseconds a step: of the GPU by kind and kernel, and of the CPU by what it waits for."""
    kernels = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and "dur" in e]
    kinds, names, numbers = Counter[str](), Counter[str](), Counter[str]()
    for event in kernels:
        kind = next((k for k, pattern in KINDS.items() if re.search(pattern, event["name"])), "other elementwise")
        kinds[kind] += event["dur"] / count / 1e3
        names[event["name"][:160]] += event["dur"] / count / 1e3
        numbers[event["name"][:160]] += 1
    busy, end = 0.0, 0.0
    for start, stop in sorted((e["ts"], e["ts"] + e["dur"]) for e in kernels):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    began = min((e["ts"] for e in kernels), default=0.0)
    ranges, runtime = Counter[str](), Counter[str]()
    for event in events:
        if event.get("cat") == "gpu_user_annotation":
            ranges[event["name"]] += event["dur"] / count / 1e3
        if event.get("cat") in ("cuda_runtime", "cuda_driver"):
            runtime[event["name"]] += event["dur"] / count / 1e3
    cpu = Counter[str]()
    for event in events:
        if event.get("cat") == "user_annotation":
            cpu[event["name"]] += event["dur"] / count / 1e3
    return {
        "gpu_ms": (end - began) / count / 1e3,
        "gpu_busy_ms": busy / count / 1e3,
        "kernels": len(kernels) / count,
        "kinds_ms": dict(kinds.most_common()),
        "kernels_ms": [(n, round(ms, 3), numbers[n] / count) for n, ms in names.most_common(22)],
        "gpu_ranges_ms": dict(ranges.most_common(12)),
        "cpu_ranges_ms": dict(cpu.most_common(12)),
        "cuda_calls_ms": dict(runtime.most_common(6)),
    }


@contextmanager
def named_parts() -> Iterator[None]:
    """Names the parts of a step in the profile."""

    def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with record_function(name):
                return function(*arguments, **options)

        return call

    places: list[tuple[Any, str, str]] = [
        (EagerPasses, "__call__", "passes"),
        (training, "update", "update"),
        (torch.nn.utils, "clip_grad_norm_", "gradient norm"),
        (torch, "_foreach_lerp_", "averaging"),
    ]
    with ExitStack() as stack:
        for owner, attribute, name in places:
            stack.enter_context(patch.object(owner, attribute, named(name, getattr(owner, attribute))))
        yield


def variants(profile_name: str, rounds: int = 12) -> Iterator[Row]:
    """Dense and masked steps in other modes and batches, in turn with the step as it is."""
    params, recipe, plans = phases(profile_name)
    masked = next(name for name, plan in plans.items() if plan.mask)
    for name in ("dense", masked):
        step = Step(params, recipe, plans[name])
        eager(step)  # a recorded step keeps the mode that it was recorded in
        flags = {"eager, filled": (True, True), "eager, as it is": (True, False), "not deterministic": (False, False)}
        found: dict[str, list[float]] = {variant: [] for variant in flags}
        for turn in range(rounds + 3):
            for variant, (deterministic, fill) in flags.items():
                torch.use_deterministic_algorithms(deterministic)
                fill_new_memory(fill)
                took = seconds(step)
                if turn >= 3:
                    found[variant].append(took)
        torch.use_deterministic_algorithms(True)
        fill_new_memory(False)
        for variant, times in found.items():
            yield result(name, variant, step.plan, times)
        del step
        for factor in (1, 1 / 2, 2, 4, 8):
            free()
            plan = replace(plans[name], batch_size=int(plans[name].batch_size * factor))
            try:
                step = Step(params, recipe, plan)
                times = [seconds(step) for _ in range(9)][3:]
            except torch.OutOfMemoryError:
                yield {"phase": name, "variant": f"batch {plan.batch_size}", "out of memory": True}
                break
            peak = torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0
            yield result(name, f"batch {plan.batch_size}", plan, times) | {"peak_GB": peak}
            del step
        free()
        if profile_name.startswith("celeba64") or not ON_GPU:
            override = recipe.model_copy(
                update={"optimisation": recipe.optimisation.model_copy(update={"optimizer": "muon"})}
            )
            plan = replace(plans[name], optimisation=override.optimisation)
            step = Step(params, override, plan)
            yield result(name, "Muon", plan, [seconds(step) for _ in range(9)][3:])
            del step
            free()


def passes(profile_name: str, rounds: int = 12) -> Iterator[Row]:
    """Every kind of phase: eager passes, and as one CUDA graph, in turn."""
    params, recipe, plans = phases(profile_name)
    for name, plan in plans.items():
        yield {"phase": name, **in_turn(params, recipe, plan, {"eager": eager, "recorded": recorded}, rounds)}
        free()


def compiled(profile_name: str, rounds: int = 12) -> Iterator[Row]:
    """A dense and a masked step with blocks by `torch.compile`, eager and recorded, in turn with those that are not."""
    params, recipe, plans = phases(profile_name)
    masked = next(name for name, plan in plans.items() if plan.mask)
    for name in ("dense", masked):
        torch._dynamo.reset()
        variants = {
            "eager": eager,
            "recorded": recorded,
            "compiled": lambda step: eager(compile_blocks(step)),
            "compiled, recorded": lambda step: recorded(compile_blocks(step)),
        }
        yield {"phase": name, **in_turn(params, recipe, plans[name], variants, rounds)}
        free()


def in_turn(
    params: Params, recipe: Recipe, plan: PhasePlan, variants: dict[str, Callable[[Step], None]], rounds: int
) -> Row:
    """Milliseconds a step of each variant, and whether three steps from the same weights end as those of the first."""
    row: Row = {"batch_size": plan.batch_size, "step_TFLOP": plan.step_flops / 1e12}
    steps, found = dict[str, Step](), dict[str, list[float]]()
    try:
        for variant, change in variants.items():
            began = time.perf_counter()
            torch.manual_seed(0)  # of the first weights
            steps[variant] = step = Step(params, recipe, plan)
            first = next(iter(steps.values()))
            step.of |= {"images": first.of["images"]}
            change(step)
            for _ in range(3):
                step()
            row[f"{variant}: prepared_s"] = time.perf_counter() - began
            one, other = (torch.cat([p.flatten() for p in s.trainer.network.parameters()]) for s in (first, step))
            row[f"{variant}: same bits"] = torch.equal(one, other)
            row[f"{variant}: difference"] = ((one - other).norm() / one.norm()).item()
        for _ in range(rounds):
            for variant, step in steps.items():
                found.setdefault(variant, []).append(seconds(step))
    except Exception:  # not every torch can do everything
        return row | {"failed": traceback.format_exc()[-1500:]}
    for variant, times in found.items():
        row[f"{variant}: ms"] = median(times) * 1e3
        row[f"{variant}: images/s"] = plan.batch_size / median(times)
        row[f"{variant}: TFLOP/s"] = plan.step_flops / median(times) / 1e12
    return row


def eager(step: Step) -> None:
    """Operation by operation."""
    step.trainer.passes = EagerPasses(step.trainer.trainee, DEVICE)


def recorded(step: Step) -> None:
    """As one CUDA graph, whatever its size."""
    if ON_GPU:
        step.trainer.passes = RecordedPasses(
            EagerPasses(step.trainer.trainee, DEVICE), step.trainer.trainee.parameters()
        )


def compile_blocks(step: Step) -> Step:
    """Its network's blocks, as a long phase does."""
    compile_parts(step.trainer.network, DEVICE)
    return step


def memory(profile_name: str) -> Iterator[Row]:
    """The most that a few steps of every kind of phase hold."""
    params, recipe, plans = phases(profile_name)
    for name, plan in plans.items():
        yield {"phase": name, "batch_size": plan.batch_size, **peak(params, recipe, plan)}


def peak(params: Params, recipe: Recipe, plan: PhasePlan) -> Row:
    """The most memory of three steps, alone."""
    free()
    try:
        step = Step(params, recipe, plan)
        for _ in range(3):
            step()
    except RuntimeError as error:  # the other phases can be measured all the same
        what = "out of memory" if isinstance(error, torch.OutOfMemoryError) else "failed"
        return {what: str(error).splitlines()[0]}
    return {"peak_GB": torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0.0}


def result(phase: str, variant: str, plan: PhasePlan, times: list[float]) -> Row:
    """A row of a variant."""
    took = median(times)
    return {
        "phase": phase,
        "variant": variant,
        "step_ms": took * 1e3,
        "images_per_second": plan.batch_size / took,
        "TFLOP/s": plan.step_flops / took / 1e12,
    }


def heldout(profile_name: str) -> Iterator[Row]:
    """The held-out loss as it is measured in training, and all of it in a run of the profile."""
    params, recipe, _ = phases(profile_name)
    trials = len(params.arms) * len(params.seeds)
    network = build_network(params.model, params.data, None).to(DEVICE).eval()
    objective = make_objective(recipe.objective)
    for batch_size in (256, max(1, min(256, training.TOKENS_A_PASS // network.num_tokens))):  # the last as in training
        free()
        x_0 = torch.rand(params.heldout.images, network.num_tokens, network.token_dim, device=DEVICE) * 2 - 1
        loss = HeldoutLoss(objective, x_0, None, generator("cpu", 0, "heldout"), batch_size)
        row: Row = {"images": params.heldout.images, "batch_size": batch_size}
        try:
            took = seconds(partial(loss, network))
            row |= {"s": took, "hours_of_all": took * params.heldout.points * trials / 3600}
            row |= {"peak_GB": torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0}
        except torch.OutOfMemoryError as error:
            row |= {"out of memory": str(error).splitlines()[0]}
        yield row


def sampling(profile_name: str) -> Iterator[Row]:
    """One evaluation of the network and one step of the sampler, for a whole batch of samples."""
    params, recipe, plans = phases(profile_name)
    network = build_network(params.model, params.data, None).to(DEVICE).eval()
    per_image = plans["dense"].flops_per_image / 3
    batch = max(1, min(params.sampling.batch_size, int(2e13 / per_image)))  # the time of an image is what counts
    x_t = torch.randn(batch, network.num_tokens, network.token_dim, device=DEVICE)
    t = torch.full((batch,), 500, device=DEVICE)
    forward_flops = per_image * batch
    reference = None
    for name, precision, dtype in (
        ("float32, as it is", "highest", None),
        ("TF32", "high", None),
        ("bfloat16 autocast", "highest", torch.bfloat16),
    ):
        torch.set_float32_matmul_precision(precision)
        context = nullcontext() if dtype is None else torch.autocast(DEVICE.type, dtype)
        with torch.no_grad(), context:
            times = [seconds(partial(network, x_t, t)) for _ in range(4)][1:]
            found = network(x_t, t).float()
        reference = found if reference is None else reference
        yield {
            "network": name,
            "batch_size": batch,
            "ms": median(times) * 1e3,
            "TFLOP/s": forward_flops / median(times) / 1e12,
            "relative_difference": ((found - reference).norm() / reference.norm()).item(),
            "hours_of_all_evaluations": median(times)
            / 3600
            * params.sampling.num_inference_steps
            * params.evaluation.samples
            / batch
            * len(params.budget.snapshots)
            * len(params.arms)
            * len(params.seeds),
            "peak_GB": torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0,
        }
    torch.set_float32_matmul_precision("highest")
    for eta, place in ((0.0, "cpu"), (1.0, "cpu"), (1.0, "device")):
        settings = Sampling.model_validate(params.sampling.model_dump() | {"sampler": "ddim", "eta": eta})
        sampler = make_sampler(settings, recipe.objective, DEVICE).scheduler
        where_drawn = "cpu" if place == "cpu" else DEVICE
        generators = [generator(where_drawn, 0, "sample", index) for index in range(batch)]
        time_step = sampler.timesteps[10 % len(sampler.timesteps)]
        noise = torch.randn_like(x_t)
        with torch.no_grad():
            one = partial(sampler.step, noise, time_step, x_t, eta=eta, generator=generators)
            times = [seconds(one) for _ in range(4)][1:]
        yield {
            "sampler step": f"DDIM, eta {eta}, noise drawn on {place}",
            "batch_size": batch,
            "ms": median(times) * 1e3,
        }


if __name__ == "__main__":
    main()
