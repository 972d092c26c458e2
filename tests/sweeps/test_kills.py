import pytest

from benchmarks import sweep_kills
from tests.sweeps import planted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_kills_change_no_bit_of_the_result(tmp_path, monkeypatch):
    for name, value in planted.one_cache(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    found = sweep_kills.study(
        tmp_path, number=1, kills=2, steps=100, parallel=1, seed=204
    )
    assert found["kills"] == 2
    assert found["exit_code"] == 0
    assert found["states"] == ["done"]
    assert found["attempts"] == [3]
    assert found["different"] == []
