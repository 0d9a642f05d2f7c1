import pytest

from maskdm.runtime import units


@pytest.mark.parametrize(
    ("value", "text"),
    [(36e12, "36 TFLOPs"), (1e12, "1 TFLOP"), (999.97e9, "1000 GFLOPs"), (1.5e15, "1.5 PFLOPs"), (12, "12 FLOPs")],
)
def test_numbers_have_an_si_prefix(value: float, text: str) -> None:
    assert units.si(value, "FLOPs") == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.875, "87.5 %"), (1.0216, "102 %"), (0.00012, "0.012 %"), (1.07e-32, "0 %"), (0.0, "0 %")]
)
def test_a_share_has_three_digits(share: float, text: str) -> None:
    assert units.percent(share) == text
