"""Next runs: within the budget, around the optimum, and worth their money."""

import numpy as np
import pytest

from scm_jax.analysis.laws.fit import fit_study
from scm_jax.analysis.laws.proposals import Candidate, _given, propose, write_proposals
from scm_jax.sweeps.plan.sweep_file import load_sweep
from tests.analysis.studies import COST, LAW, NIGHTLY, study

TOTAL = 1e14
SIZES = np.geomspace(1e4, 1e7, 13)
CANDIDATES = [Candidate(n, {"network.width": 8 * i}) for i, n in enumerate(SIZES, 1)]


def fitted(seed=0, more=((), (), (), ())):
    columns = zip(study(noise=0.02, seed=seed), more, strict=True)
    return fit_study(*map(np.append, *zip(*columns, strict=True)), count=100)


@pytest.fixture(scope="module")
def fit():
    return fitted()


@pytest.fixture(scope="module")
def proposals(fit):
    return propose(fit, CANDIDATES, TOTAL)


def test_the_budget_is_kept_and_used(proposals):
    assert 0.9 * TOTAL < sum(p.flops for p in proposals) <= TOTAL
    costs = [p.images * COST(p.candidate.parameters) for p in proposals]
    assert costs == pytest.approx([p.flops for p in proposals], rel=1e-3)


def test_half_of_it_goes_to_three_sizes_around_the_predicted_optimum(fit, proposals):
    first = [p for p in proposals if p.reason == "optimum"]
    assert [p.flops for p in first] == pytest.approx([TOTAL / 6] * 3)
    best = float(fit.law.optimum(TOTAL / 6, fit.flops_per_image).parameters)
    below, middle, above = (p.candidate.parameters for p in first)
    assert below < best < above
    assert middle == min(SIZES, key=lambda n: abs(np.log(n / best)))


def test_a_new_budget_stays_within_the_horizon(fit):
    first = propose(fit, CANDIDATES, 1e18, horizon=4.0)[0]
    assert first.flops == pytest.approx(4 * 5e12)


def test_uncertain_runs_narrow_the_prediction_more_than_random_ones():
    """The rule's own claim, tried out: measure what it proposes, and refit."""
    spend = 2e13
    narrowed = {"proposed": [], "random": []}
    for seed in range(3 if NIGHTLY else 1):
        fit = fitted(seed)
        found = propose(fit, CANDIDATES, 2 * spend)
        chosen = [p for p in found if p.reason == "uncertain"]
        rng = np.random.default_rng(seed)
        measured = (fit.parameters, fit.flops)
        sets = {
            "proposed": np.array([(p.candidate.parameters, p.flops) for p in chosen]).T,
            "random": [rng.choice(values, len(chosen)) for values in measured],
        }
        for name, (n, c) in sets.items():
            d = c / COST(n)
            loss = LAW(n, d) * np.exp(0.02 * rng.normal(size=len(n)))
            refitted = fitted(seed, more=(n, d, c, loss))
            best = refitted.optimum(2 * spend / 6)["parameters"]
            narrowed[name].append(np.log(best.high / best.low))
    assert np.mean(narrowed["proposed"]) < np.mean(narrowed["random"])


def test_knowing_a_run_leaves_less_to_learn():
    """The ensemble's update against the exact one of two correlated normals."""
    rng = np.random.default_rng(0)
    losses = rng.normal(size=(2, 4000))
    losses[1] = 0.6 * losses[0] + 0.8 * losses[1]
    losses -= losses.mean(1, keepdims=True)
    target = 2.0 * losses[0]
    noise = 0.5
    after, rest = _given(target, losses, 0, noise)
    whole = np.mean(losses[0] ** 2) + noise
    for before, then in ((target, after), (losses[0], rest[0]), (losses[1], rest[1])):
        known = np.mean(before * losses[0]) ** 2 / whole
        assert np.mean(then**2) == pytest.approx(np.mean(before**2) - known)


def test_seeds_count_on_from_the_runs_that_are_there(fit):
    some = [Candidate(n, {}) for n in np.unique(fit.parameters)]
    proposed = propose(fit, some, TOTAL)
    repeats = [p.seed for p in proposed if p.flops <= 5.0001e12]
    assert repeats and min(repeats) >= 2
    assert {p.seed for p in proposed if p.flops > 6e12} <= {0, 1}
    keys = [(p.candidate.parameters, p.flops, p.seed) for p in proposed]
    assert len(set(keys)) == len(keys)


def test_the_sweep_file_can_be_loaded(tmp_path, proposals):
    facts = {"common": {"optimizer.schedule": "constant"}, "about": "Fitted to this."}
    facts |= {"metrics": ("validation_error",)}
    base = "experiments/digits.py:sct"
    path = write_proposals(tmp_path / "next.py", proposals, base, **facts)
    sweep = load_sweep(str(path))
    assert sweep.base == base
    assert sweep.metrics == ("validation_error",)
    assert len(sweep.entries) == len(proposals)
    for entry, proposal in zip(sweep.entries, proposals, strict=True):
        assert entry["network.width"] == proposal.candidate.overrides["network.width"]
        assert entry["train.flops"] == pytest.approx(proposal.flops, rel=1e-5)
        assert entry["seed"] == proposal.seed
        assert entry["optimizer.schedule"] == "constant"
        assert entry["tags"] == ("proposed", proposal.reason)
    assert "Fitted to this." in path.read_text()


def test_what_cannot_be_proposed_is_named(fit):
    with pytest.raises(ValueError, match="2 candidates: 3 sizes are needed"):
        propose(fit, CANDIDATES[:2], TOTAL)
    with pytest.raises(ValueError, match="1e\\+11 is too little"):
        propose(fit, CANDIDATES, 1e11)


def test_keys_that_proposals_set_are_refused(tmp_path, fit):
    taken = [Candidate(n, {"seed": 3}) for n in SIZES]
    with pytest.raises(ValueError, match=r"overrides set \['seed'\]"):
        write_proposals(tmp_path / "x.py", propose(fit, taken, TOTAL), "b.py")
    with pytest.raises(ValueError, match="no proposals"):
        write_proposals(tmp_path / "x.py", [], "b.py")
    assert not (tmp_path / "x.py").exists()
