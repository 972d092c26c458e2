"""Rows that were measured alike, and rows that were not."""

import pytest

from scm_jax.evaluation import comparable


def measured(name, **changed):
    """A row of FID with its protocol."""
    protocol = {
        **{"metric": "fid", "extractor": "inception", "extractor_sha256": "ab" * 32},
        **{"resize": "none", "quantization": "truncated", "reference": "cifar10"},
        **{"reference_sha256": "cd" * 32, "reference_count": 50, "num_samples": 100},
        **{"seeds": [0], "sampler": "heun", "steps": 2},
    }
    protocols = {name: protocol | changed, "validation": {"num_samples": name}}
    numbers = {"fid": 3.0, "run": name, "measured_by": {"fid": name}}
    return numbers | {"protocol": protocols}


def test_rows_that_were_measured_in_different_ways_are_refused():
    first = measured("fid")
    sampled = measured("inception", seeds=[1], steps=4, metric="fid, sfid")
    comparable.require_comparable([first, {"fid": 2.0}, sampled], "fid")
    other = measured("other", num_samples=200, extractor="dinov2")
    with pytest.raises(ValueError, match="(?s)fid of 'fid' .*'other'") as caught:
        comparable.require_comparable([first, sampled, other], "fid")
    assert "extractor: 'inception' there, 'dinov2' here" in str(caught.value)
    assert "num_samples: 100 there, 200 here" in str(caught.value)
    comparable.require_comparable([first, other | {"fid": None}], "fid")
    comparable.require_comparable([first, other], "validation_error")


def test_settings_of_a_shared_metric_must_agree():
    three = measured("a", metric="fid, prdc(k=3)")
    five = measured("b", metric="prdc(k=5), is(split_size=5000)")
    for one in (three, five):
        one |= {"precision": 0.5, "measured_by": {"precision": one["run"]}}
    with pytest.raises(ValueError, match=r"metric: .*k=3.* there, .*k=5.* here"):
        comparable.require_comparable([three, five], "precision")
    same = measured("c", metric="prdc(k=3), kid(num_subsets=9)")
    same |= {"precision": 0.6, "measured_by": {"precision": "c"}}
    comparable.require_comparable([three, same], "precision")


def test_tables_keep_apart_what_was_measured_differently():
    rows = [measured("a"), measured("b", num_samples=200), measured("c", steps=4)]
    rows += [{"run": "d", "fid": 1.0}, measured("e", num_samples=200)]
    found = comparable.tables(rows)
    names = [[row["run"] for row in table] for _, table in found]
    assert names == [["a", "c", "d"], ["b", "e"]]
    assert found[0][0] == ""
    assert "num_samples: 100 there, 200 here" in found[1][0]
    assert comparable.tables([]) == []
