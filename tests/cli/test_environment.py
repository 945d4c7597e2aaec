"""What lit-cnn sets in the environment before libraries read it."""

import pytest

from lit_cnn.core.environment import SPIN_COUNT, set_environment


@pytest.mark.parametrize(
    "given, spin_count",
    [
        ({}, SPIN_COUNT),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),  # it says how long threads wait; a count would overrule it
    ],
)
def test_the_user_decides_how_long_idle_threads_wait(
    given: dict[str, str], spin_count: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dict(given)
    monkeypatch.setattr("os.environ", environment)
    set_environment()
    assert environment.get("GOMP_SPINCOUNT") == spin_count
    assert environment["OMP_WAIT_POLICY"] == given.get("OMP_WAIT_POLICY", "PASSIVE")
