"""Figures that tests measure against a bound, printed when the run ends."""

WORST: dict[str, tuple[float, float]] = {}


def assert_within(name: str, value: float, bound: float, detail: object = "") -> None:
    """Note the value if it is the worst of its name, and hold it against the bound."""
    WORST[name] = max(WORST.get(name, (0.0, bound)), (value, bound))
    assert value <= bound, f"{name}: {value:.3g} > {bound:.3g} {detail}"
