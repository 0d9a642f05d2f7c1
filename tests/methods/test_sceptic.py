"""Arms that are wrong on purpose: what they claim to be wrong is, and a wrong cost is refused."""

import importlib

import pytest
import torch

import maskdm.methods
from benchmarks.sceptic.arms import ARMS, METHODS, REFUSED, settings
from maskdm.config.comparison import Phase
from maskdm.config.method import Group
from maskdm.config.params import Params
from maskdm.config.reading import recipe_of
from maskdm.methods.method import Trainee, View
from maskdm.runtime.errors import MaskDMError
from maskdm.training.plan import PhasePlan, arm_plans, build_network, check_planned_flops, method_of
from tests.imports import PROJECT

KEPT = torch.arange(20).reshape(4, 5)


@pytest.fixture(autouse=True)
def _methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskdm.methods, "__path__", [*maskdm.methods.__path__, METHODS])
    monkeypatch.chdir(PROJECT)
    importlib.invalidate_caches()


def plans(params: Params, arm: str) -> tuple[PhasePlan, ...]:
    return arm_plans(params, recipe_of(params, PROJECT), arm)


def told(phase: Phase) -> torch.Tensor:
    """Which places the network is told, of tokens that stand at `KEPT`."""
    found: list[torch.Tensor] = []

    def network(x_t: torch.Tensor, t: torch.Tensor, ids_keep: torch.Tensor, labels: None) -> torch.Tensor:
        found.append(ids_keep)
        return x_t

    x_t, chance = torch.zeros(4, 5, 3), torch.tensor([0.1, 0.35, 0.6, 0.85])
    view = View(Group(4, phase.mask), x_t, torch.zeros(4), x_t, KEPT, labels=None, chance=chance, positions=True)
    method_of(phase).predict(network, {}, view)  # type: ignore[arg-type]  # all that it calls is the network
    return found[0]


def test_shuffled_tokens_are_told_each_others_places() -> None:
    places = told(settings(ARMS).arms["shuffled"][0])
    assert torch.equal(places.sort(dim=1).values, KEPT)
    assert len({tuple(row.tolist()) for row in places - KEPT[:, :1]}) > 1, "shuffled differently in each image"


def test_elsewhere_is_where_the_next_image_has_its_tokens() -> None:
    assert torch.equal(told(settings(ARMS).arms["elsewhere"][0]), KEPT[[3, 0, 1, 2]])


def test_a_mask_that_is_ignored_costs_what_whole_images_cost() -> None:
    params = settings(ARMS)
    ignored, control = (plans(params, arm)[0] for arm in ("ignored", "control"))
    assert (ignored.flops_per_image, ignored.steps) == (control.flops_per_image, control.steps)
    assert ignored.removed == 0


def test_masks_that_are_ignored_and_said_to_hold_are_refused() -> None:
    says = r"method.name=ignored: an image costs 100.0% of a whole one, though blocks see 25.0% of it; allowed: "
    with pytest.raises(MaskDMError, match=says):
        plans(settings(REFUSED), "ignored")


def test_what_costs_more_where_it_trains_than_where_it_is_counted_is_refused() -> None:
    params = settings({"miscounted": REFUSED["miscounted"]})
    plan, _ = plans(params, "miscounted")
    trainee = Trainee(build_network(params.model, params.data, None), plan.method)
    with pytest.raises(MaskDMError, match=r"method.name=miscounted: an image takes .* and the plan has counted "):
        check_planned_flops(trainee, plan, torch.device("cpu"))


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_no_worse_counted_than_it_trains_is_taken(arm: str) -> None:
    params = settings(ARMS)
    for plan in plans(params, arm):
        check_planned_flops(
            Trainee(build_network(params.model, params.data, None), plan.method), plan, torch.device("cpu")
        )
