"""What every objective of the registry must do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import objectives
from scm_jax.objectives import OBJECTIVES
from scm_jax.objectives.base import NUM_TIME_BINS
from scm_jax.types import Batch, Cond

# Every way to run an objective: name -> (registry key, settings).
VARIANTS = {
    "diffusion": ("diffusion", {}),
    "sct": ("consistency", {"dx_dt": "data"}),
    "guided scd": (
        "consistency",
        {"dx_dt": "teacher", "guidance_range": (1.0, 3.0), "label_dropout": 0.1},
    ),
    "ablated sct": (
        "consistency",
        {
            "dx_dt": "data",
            "tangent": "finite_difference",
            "tangent_normalization": "rms",
            "learned_weighting": False,
            "tangent_warmup_form": "rcm",
            "prior_weighting": "inverse_sigma_twice",
        },
    ),
    "scd in segments": ("consistency", {"dx_dt": "teacher", "segments": 3}),
    "meanflow": ("mean_flow", {}),
    "guided imf": (
        "mean_flow",
        {"tangent_velocity": "own", "guidance_range": (1.0, 8.0), "label_dropout": 0.1},
    ),
    "ayf-emd": (
        "mean_flow",
        {
            **{"dx_dt": "teacher", "pairs": "gap", "diagonal_share": 0.0},
            **{"tangent_normalization": "l2", "adaptive_power": 0.0},
        },
    ),
    "lsd": ("lagrangian", {}),
    "ayf-lmd": (
        "lagrangian",
        {
            **{"dx_dt": "teacher", "pairs": "gap", "map_every": 1},
            **{"differentiate": False, "tangent_normalization": "l2"},
        },
    ),
    "shortcut": ("semigroup", {"map_every": 4}),
    "psd": (
        "semigroup",
        {"pairs": "uniform", "middle": "uniform", "map_every": 4},
    ),
    "ict": ("discrete", {"curriculum_steps": 100}),
    "ect": ("discrete", {"grid": "ratio", "huber": 1e-6, "intervals": (2, 2)}),
    "cd": (
        "discrete",
        {
            **{"dx_dt": "teacher", "solver": "heun", "intervals": (18, 18)},
            **{"huber": 0.0, "gap_weighting": False},
        },
    ),
    "vsd": ("matching", {}),
    "dmd": ("matching", {"form": "dmd", "simulated": 3, "learned_weighting": False}),
}
BATCH, SHAPE = 12, (4, 2, 1)


def test_registry_is_not_empty_and_every_objective_is_tested():
    assert {name for name, _ in VARIANTS.values()} == set(OBJECTIVES) != set()


def net_fn(params, x, cond, *, train=False, key=None):
    row = jnp.sin(2.0 * cond.t) + 0.1 * cond.label
    if cond.guidance is not None:
        row = row + cond.guidance
    if cond.dt is not None:
        row = row + jnp.cos(3.0 * cond.dt)
    return jnp.tanh(x * params["scale"] + row[:, None, None, None]) + params["shift"]


def teacher_fn(x, cond: Cond):
    return 0.5 * x


def critic_fn(x, cond: Cond):
    return 0.4 * x + 0.1


def others(objective):
    """The further networks that an objective needs."""
    found = {"teacher_fn": teacher_fn if objective.needs_teacher else None}
    return found | ({"critic_fn": critic_fn} if objective.needs_critic else {})


class Variant:
    def __init__(self, name):
        registered, settings = VARIANTS[name]
        self.objective = objectives.build(registered, sigma_data=0.5, **settings)
        self.traces = 0

        @jax.jit
        def run(params, batch, key, step):
            self.traces += 1

            def loss(params):
                out = self.objective(
                    net_fn,
                    params,
                    batch,
                    key=key,
                    step=step,
                    **others(self.objective),
                )
                return out.loss, out

            return jax.grad(loss, has_aux=True)(params)

        self.run = run
        net = {"scale": jnp.float32(0.7), "shift": jnp.zeros((4, 2, 1))[None]}
        self.params = {"net": net, "objective": self.objective.init(jax.random.key(0))}

    def __call__(self, x=None, seed=0, step=10**6):
        rng = np.random.default_rng(0)
        data = 0.7 + 0.3 * rng.normal(size=(BATCH, *SHAPE))
        batch = Batch(
            x=jnp.asarray(data if x is None else x, jnp.float32),
            label=jnp.arange(BATCH) % 3,
        )
        return self.run(self.params, batch, jax.random.key(seed), jnp.int32(step))

    @functools.cached_property
    def first(self):
        return self()


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(request):
    return Variant(request.param)


def test_output_has_one_loss_per_example_and_its_mean(variant):
    _, out = variant.first
    assert out.per_example.shape == (BATCH,) and out.loss.shape == ()
    assert out.per_example.dtype == out.loss.dtype == jnp.float32
    np.testing.assert_allclose(out.loss, out.per_example.mean(), rtol=1e-6)


def test_metrics_are_scalars_and_bins_of_sums(variant):
    _, out = variant.first
    metrics = dict(out.metrics)
    bins = metrics.pop("bins")
    assert all(np.shape(a) == () for a in metrics.values())
    assert {"count", "loss", "log_weight"} <= set(bins)
    assert all(a.shape == (NUM_TIME_BINS,) for a in bins.values())
    assert float(bins["count"].sum()) == BATCH
    np.testing.assert_allclose(bins["loss"].sum(), out.per_example.sum(), rtol=1e-5)


def test_everything_is_finite_and_the_network_learns(variant):
    grads, out = variant.first
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves((grads, out)))
    assert all(np.abs(a).max() > 0 for a in jax.tree.leaves(grads["net"]))
    weight = grads["objective"]
    assert set(weight) <= {"log_weight"}
    assert bool(weight) == variant.objective.learned_weighting


def test_examples_do_not_see_each_other(variant):
    """Changing one example changes its own loss alone; no norm runs over the batch."""
    rng = np.random.default_rng(0)
    x = 0.7 + 0.3 * rng.normal(size=(BATCH, *SHAPE))
    x[3] *= 10.0
    _, before = variant.first
    _, after = variant(x=x)
    rest = np.arange(BATCH) != 3
    np.testing.assert_allclose(
        after.per_example[rest], before.per_example[rest], rtol=1e-5
    )
    if not variant.objective.needs_critic:  # which learns from its own samples
        one, other = (float(out.per_example[3]) for out in (before, after))
        assert one != pytest.approx(other, rel=1e-4)


def test_same_key_same_loss_and_no_second_compilation(variant):
    _, first = variant.first
    _, same = variant()
    _, other = variant(seed=1)
    variant(step=7)
    jax.tree.map(np.testing.assert_array_equal, first, same)
    assert np.all(np.asarray(first.per_example != other.per_example))
    assert variant.traces == 1


def test_no_implicit_promotion_of_dtypes(variant):
    x = jnp.ones((BATCH, *SHAPE))
    objective = variant.objective

    def run(params, x, key):
        return objective(
            lambda params, x, cond, **_: x * params["scale"],
            params,
            Batch(x=x, label=jnp.zeros((BATCH,), jnp.int32)),
            key=key,
            step=jnp.int32(3),
            **others(objective),
        ).loss

    with jax.numpy_dtype_promotion("strict"):
        loss = jax.eval_shape(run, variant.params, x, jax.random.key(0))
    assert loss.dtype == jnp.float32


def test_unknown_names_and_settings_are_errors():
    with pytest.raises(ValueError, match=r"objective\.name = 'sct' is not one of"):
        objectives.build("sct")
    for name in OBJECTIVES:
        with pytest.raises(ValueError, match=r"'P_meen' .* did you mean 'P_mean'"):
            objectives.build(name, P_meen=-1.0)
