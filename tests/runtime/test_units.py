import pytest

from maskdm.runtime import units


@pytest.mark.parametrize(
    ("value", "text"), [(36e12, "36 TFLOPs"), (999.97e9, "1000 GFLOPs"), (1.5e15, "1.5 PFLOPs"), (12, "12 FLOPs")]
)
def test_numbers_have_an_si_prefix(value: float, text: str) -> None:
    assert units.si(value, "FLOPs") == text
