"""The sections of the methods' page beside its comparisons."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from maskdm.config.method import names
from maskdm.config.params import Params
from maskdm.reporting.methods_sections import (
    CLAIMS,
    Compared,
    claims_answer,
    data_sets_answers,
    networks_answer,
)
from tests.comparison import REDUCTION, analysed, make_records, settings


def compared(changes: Mapping[str, Any] = {}, **reduction: float) -> Compared:
    params = Params.model_validate(settings() | dict(changes))
    return Compared(params, analysed(params, make_records(params, REDUCTION | reduction)).arms)


@pytest.fixture(scope="module")
def vit() -> Compared:
    return compared()


@pytest.fixture(scope="module")
def other() -> Compared:
    """Another network, under which blocks do worse than scratch."""
    return compared(changes={"model": settings()["model"] | {"name": "dit"}}, block90=1.05)


def test_a_method_is_plug_and_play_if_it_is_better_under_every_network(vit: Compared, other: Compared) -> None:
    answer = networks_answer([vit, other])
    found = "trained: `patch90`; clearly above it everywhere: `crop3`; neither: `block90`."
    assert answer.in_short.endswith(found)
    assert "| arm     |" in answer.section
    assert "U-ViT, tuned, 36 TFLOPs |" in answer.section
    assert "DiT, tuned, 36 TFLOPs |" in answer.section
    row = re.search(r"\| block90 .*", answer.section)
    assert row
    assert re.search(r"78.1 % \(.*\) +\| +loss \+5.0 % \(", row[0])
    assert "control" not in answer.section


def test_an_arm_that_a_network_cannot_train_is_judged_by_the_others(vit: Compared, other: Compared) -> None:
    without = Compared(other.params, other.arms[other.arms["arm"] != "patch90"])
    answer = networks_answer([vit, without])
    assert "wherever it was trained: `patch90`;" in answer.in_short
    row = re.search(r"\| patch90 .*", answer.section)
    assert row
    assert row[0].endswith("- |")


def test_claims_stand_beside_what_was_measured(vit: Compared) -> None:
    answer = claims_answer(vit)
    assert "2 of 3 arms train faster than scratch at equal compute: `patch90`, `block90`." in answer.in_short
    rows = [line for line in answer.section.splitlines() if "MaskDM: up to 4 times" in line]
    assert [line.split()[1] for line in rows] == ["patch90", "block90", "crop3"]


def test_the_order_of_the_methods_on_two_data_sets_is_compared(vit: Compared) -> None:
    alike = compared(patch90=0.92, block90=0.9, crop3=1.3)
    turned = compared(patch90=0.99, block90=1.3, crop3=0.7)
    for arms, says in ((alike.arms, "+1.00 (p < 0.001)"), (turned.arms, "-1.00 (p < 0.001)")):
        (answer,) = data_sets_answers([vit, Compared(vit.params, arms, "photographs")])
        assert "Are the same methods best on photographs?" in answer.in_short
        assert f"rank correlation of {says}, by distance" in answer.in_short
        assert f"loss, {vit.params.data.title}" in answer.section
        assert "loss, photographs" in answer.section


def test_only_parts_that_differ_in_their_data_set_alone_are_compared(vit: Compared, other: Compared) -> None:
    assert data_sets_answers([vit, other]) == []
    assert data_sets_answers([vit, Compared(other.params, other.arms, "photographs")]) == []
    assert Compared(vit.params, vit.arms, "photographs").label == f"photographs, {vit.label}"


def test_every_method_has_a_claim() -> None:
    assert set(CLAIMS) == set(names())
