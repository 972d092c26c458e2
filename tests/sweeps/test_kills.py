import pytest

from benchmarks import sweep_kills


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_kills_change_no_bit_of_the_result(tmp_path):
    found = sweep_kills.study(
        tmp_path, number=2, kills=2, steps=100, parallel=2, seed=1
    )
    assert found["kills"] == 2
    assert found["exit_code"] == 0
    assert found["states"] == ["done", "done"]
    assert sum(found["attempts"]) == 4
    assert found["different"] == []
