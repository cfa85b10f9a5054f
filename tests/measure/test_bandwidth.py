import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.measure.metrics import decode_ceiling, fraction_of_bandwidth


def test_half_of_the_bandwidth() -> None:
    assert decode_ceiling(2e9, 20e9) == 10.0
    assert fraction_of_bandwidth(5.0, 2e9, 20e9) == 0.5


positive = st.floats(1e-3, 1e15)


@given(positive, positive, positive)
def test_the_ceiling_is_the_whole_bandwidth(rate: float, size: float, bandwidth: float) -> None:
    assert fraction_of_bandwidth(decode_ceiling(size, bandwidth), size, bandwidth) == pytest.approx(1.0)
    assert fraction_of_bandwidth(rate, size, bandwidth) * bandwidth == pytest.approx(rate * size)


@pytest.mark.parametrize(("size", "bandwidth"), [(0, 1e9), (1e9, 0), (-1, 1)])
def test_nonsense_is_refused(size: float, bandwidth: float) -> None:
    with pytest.raises(ValueError, match="more than 0"):
        fraction_of_bandwidth(1.0, size, bandwidth)
