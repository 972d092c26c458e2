import pytest

from benchmarks import sweep_kills
from tests.sweeps import planted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_kills_change_no_bit_of_the_result(tmp_path, monkeypatch):
    for name, value in planted.one_cache(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    settings = {"number": 1, "kills": 2, "steps": 100, "parallel": 1, "seed": 204}
    found = sweep_kills.study(tmp_path, **settings)
    assert (found["kills"], found["exit_code"], found["states"]) == (2, 0, ["done"])
    assert found["attempts"] == [3]
    assert found["different"] == []
