"""Numbers as a reader wants them."""


def si(value: float, unit: str) -> str:
    """A number with an SI prefix: `si(36e12, "FLOPs")` is `36 TFLOPs`, and `si(1e12, "FLOPs")` is `1 TFLOP`."""
    factor, prefix = si_prefix(value)
    number = f"{value / factor:.4g}"
    return f"{number} {prefix}{unit.removesuffix('s') if number == '1' else unit}"


def si_prefix(value: float) -> tuple[float, str]:
    """The largest SI factor that is at most `value`, and its prefix."""
    prefixes = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    return next(((factor, prefix) for factor, prefix in prefixes if value >= factor), (1.0, ""))


def four_digits(value: float) -> str:
    """Four significant digits, zeros kept, so that the rows of a column line up: 0.232 is `0.2320`."""
    return f"{value:#.4g}".rstrip(".")


def percent(share: float) -> str:
    """A share as text to three digits at most: 0.875 is `87.5 %`. What rounding leaves of nothing is `0 %`."""
    return f"{round(100 * share, 3):.3g} %"
