import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.training import ema

STEPS = 400
STD_A, STD_B = 0.05, 0.10


def power_profile(tau, time, gamma):
    """Density of the weights at ``time``, EDM2's appendix C."""
    return np.where(tau <= time, (gamma + 1) / time * (tau / time) ** gamma, 0.0)


def beta(profile, step, images):
    return 1 - float(profile.update_weight(step, images))


def reconstruct(snapshots, rel_std, time):
    """The average of any width and moment from ``(time, rel_std, tree)``."""
    times, rel_stds, trees = zip(*snapshots, strict=True)
    coefficients = ema.posthoc_coefficients(times, rel_stds, time, rel_std)
    return ema.weighted_sum(coefficients, trees)


def tracked(profile, trajectory, images_per_step=1):
    """The average after every update, in float64 from the traced weights."""
    weights = jax.vmap(lambda n: profile.update_weight(n, images_per_step))(
        jnp.arange(len(trajectory))
    )
    averages, average = [], np.full_like(trajectory[0], 1e6)  # the init must not count
    for weight, theta in zip(np.float64(weights), trajectory, strict=True):
        average = average + weight * (theta - average)
        averages.append(average)
    return np.array(averages)


@pytest.fixture(scope="module")
def trajectory():
    """Parameters that drift and wander, ``(STEPS, 5)``: averages of them differ."""
    rng = np.random.default_rng(0)
    wander = np.cumsum(rng.normal(size=(STEPS, 5)), axis=0)
    return 3.0 + wander + np.linspace(0, 4, STEPS)[:, None]


@pytest.mark.parametrize("rel_std", [0.001, 0.015, 0.07, 0.2, ema.MAX_REL_STD])
def test_gamma_and_width_invert_each_other(rel_std):
    gamma = ema.rel_std_to_gamma(rel_std)
    width = np.sqrt(gamma + 1) / ((gamma + 2) * np.sqrt(gamma + 3))  # Eq. 123
    assert width == pytest.approx(rel_std, rel=1e-6)


def test_width_is_the_standard_deviation_of_the_profile():
    tau = (np.arange(100_000) + 0.5) / 100_000
    density = power_profile(tau, 1.0, ema.rel_std_to_gamma(0.08))
    assert density.mean() == pytest.approx(1, rel=1e-6)
    var = (density * (tau - (density * tau).mean()) ** 2).mean()
    assert np.sqrt(var) == pytest.approx(0.08, rel=1e-5)


@pytest.mark.parametrize("rel_std", [0.0, -0.1, 0.3, float("nan")])
def test_illegal_widths_are_refused_with_the_legal_range(rel_std):
    with pytest.raises(ValueError, match=r"rel_std=.*\(0, 0\.2887\]"):
        ema.PowerEma(rel_std)


@pytest.mark.parametrize("rel_std", [STD_A, STD_B])
def test_power_average_has_the_exact_weights(rel_std, trajectory):
    # The product of betas telescopes: theta_k weighs (k^p - (k-1)^p) / n^p with
    # p = gamma + 1, the integral of the profile over update k.
    p = ema.rel_std_to_gamma(rel_std) + 1
    k = np.arange(1, STEPS + 1)
    weights = (k / STEPS) ** p - ((k - 1) / STEPS) ** p
    average = tracked(ema.PowerEma(rel_std), trajectory)[-1]
    np.testing.assert_allclose(average, weights @ trajectory, rtol=1e-5)


def test_update_weight_keeps_its_digits_late_in_training():
    step = 2_000_000
    exact = -np.expm1((ema.rel_std_to_gamma(STD_B) + 1) * np.log1p(-1 / (step + 1)))
    got = jax.jit(lambda n: ema.PowerEma(STD_B).update_weight(n, 1))(jnp.int32(step))
    assert float(got) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    "profile",
    [ema.PowerEma(0.05), ema.HalfLifeEma(1000), ema.HalfLifeEma(1000, None)],
)
def test_first_update_forgets_the_initialization(profile):
    assert beta(profile, jnp.int32(0), 32) == 0.0
    assert 0 < beta(profile, jnp.int32(1), 32) < 1


def test_half_life():
    profile = ema.HalfLifeEma(half_life_images=640, rampup_ratio=None)
    betas = [beta(profile, n, 64) for n in range(5, 15)]
    assert np.prod(betas) == pytest.approx(0.5, rel=1e-5)
    # EDM: half-life min(H, 0.05 images): after 100 steps of 64, 320 images.
    profile = ema.HalfLifeEma(half_life_images=500_000)
    assert beta(profile, 100, 64) == pytest.approx(0.5 ** (64 / 320), rel=1e-5)
    late = beta(profile, 10**6, 64)
    assert late == pytest.approx(0.5 ** (64 / 500_000), rel=1e-6)


@pytest.mark.parametrize("field", ["half_life_images", "rampup_ratio"])
def test_half_life_must_be_positive(field):
    with pytest.raises(ValueError, match=f"{field}=0"):
        ema.HalfLifeEma(**{"half_life_images": 10, field: 0})


@pytest.mark.parametrize(
    ("a", "b"),
    [((2.0, 5.0), (3.0, 9.0)), ((3.0, 5.0), (2.0, 9.0)), ((2.0, 4.0), (2.0, 4.0))],
)
def test_dot_product_is_the_integral_and_symmetric(a, b):
    tau = (np.arange(200_000) + 0.5) / 200_000 * 3.0
    product = power_profile(tau, *a) * power_profile(tau, *b)
    integral = product.mean() * 3.0
    assert ema.profile_dot(*a, *b) == pytest.approx(integral, rel=1e-4)
    assert ema.profile_dot(*a, *b) == pytest.approx(ema.profile_dot(*b, *a), rel=1e-12)


@pytest.fixture(scope="module")
def snapshots(trajectory):
    """Both widths, 16 times during the training."""
    averages = {s: tracked(ema.PowerEma(s), trajectory) for s in (STD_A, STD_B)}
    times = range(STEPS // 16, STEPS + 1, STEPS // 16)
    return [
        (time, std, {"w": averages[std][time - 1].astype(np.float32)})
        for time in times
        for std in (STD_A, STD_B)
    ]


@pytest.mark.parametrize("rel_std", [0.05, 0.075, 0.10])
@pytest.mark.parametrize("time", [STEPS, 300])
def test_any_width_between_the_tracked_ones(rel_std, time, snapshots, trajectory):
    want = tracked(ema.PowerEma(rel_std), trajectory[:time])[-1]
    got = reconstruct(snapshots, rel_std, time)["w"]
    spread = np.abs(snapshots[-1][2]["w"] - snapshots[-2][2]["w"]).max()
    assert np.abs(got - want).max() < 5e-3 * spread


def test_a_moment_between_two_snapshots(snapshots, trajectory):
    want = tracked(ema.PowerEma(0.10), trajectory[:380])[-1]
    got = reconstruct(snapshots, 0.10, 380)["w"]
    nearest = next(tree for time, std, tree in snapshots if (time, std) == (375, 0.10))
    assert np.abs(got - want).max() < 0.3 * np.abs(nearest["w"] - want).max()


def test_a_stored_average_reconstructs_itself():
    times, stds = [100, 100, 200, 200], [0.05, 0.1, 0.05, 0.1]
    coefficients = ema.posthoc_coefficients(times, stds, 200, 0.05)
    np.testing.assert_allclose(coefficients, [0, 0, 1, 0], atol=1e-9)


@pytest.mark.parametrize("rel_std", [0.015, 0.05, 0.075, 0.15, ema.MAX_REL_STD])
@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_weights_that_do_not_move_come_back_from_any_number_of_snapshots(
    count, rel_std
):
    for stds in ((STD_A,), (STD_A, STD_B)):
        for time in (STEPS, 0.7 * STEPS):
            times = np.repeat(STEPS / count * np.arange(1, count + 1), len(stds))
            snapshots = [
                (t, s, 3.7) for t, s in zip(times, np.tile(stds, count), strict=True)
            ]
            got = reconstruct(snapshots, rel_std, time)
            assert got == pytest.approx(3.7, rel=1e-9)


def test_coefficients_of_the_published_code():
    """EDM2's ``solve``, divided by the sum: 2 widths x 4 snapshots."""
    times, stds = np.repeat([1.0, 2.0, 3.0, 4.0], 2), np.tile([STD_A, STD_B], 4)
    p = np.array([ema.rel_std_to_gamma(s) for s in stds])
    q = ema.rel_std_to_gamma(0.15)
    solved = np.linalg.solve(
        ema.profile_dot(times[:, None], p[:, None], times[None], p[None]),
        ema.profile_dot(times, p, 4.0, q),
    )
    assert solved.sum() == pytest.approx(0.963, abs=1e-3)
    got = ema.posthoc_coefficients(times, stds, 4.0, 0.15)
    np.testing.assert_allclose(got, solved / solved.sum(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("rel_std", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_gamma_of_the_paper(rel_std, gamma):
    assert ema.rel_std_to_gamma(rel_std) == pytest.approx(gamma, abs=5e-3)


def test_power_beta():  # Eq. 127
    steps = np.array([0, 1, 10, 1000])
    want = (1 - 1 / (steps + 1)) ** (ema.rel_std_to_gamma(STD_A) + 1)
    got = [beta(ema.PowerEma(STD_A), n, 128) for n in steps]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_units_of_time_do_not_matter():
    times, stds = np.array([100, 100, 200, 200]), [0.05, 0.1, 0.05, 0.1]
    in_steps = ema.posthoc_coefficients(times, stds, 150, 0.08)
    in_images = ema.posthoc_coefficients(times * 2048, stds, 150 * 2048, 0.08)
    np.testing.assert_allclose(in_steps, in_images, rtol=1e-6)


def test_a_snapshot_stored_twice_does_no_harm():
    tree = {"w": np.ones(3, np.float32)}
    twice = [(10, 0.05, tree), (10, 0.05, tree), (10, 0.1, tree)]
    got = reconstruct(twice, 0.07, 10)["w"]
    np.testing.assert_allclose(got, 1, rtol=1e-6)


def test_future_and_missing_snapshots_are_refused():
    with pytest.raises(ValueError, match="cannot give the EMA at 30"):
        ema.posthoc_coefficients([10, 20], [0.05, 0.05], 30, 0.05)
    with pytest.raises(ValueError, match="at least one"):
        ema.posthoc_coefficients([], [], 30, 0.05)


def test_weighted_sum_loads_one_tree_at_a_time_and_keeps_the_dtype():
    alive = []

    def load(i):
        alive.append(i)
        return {"w": np.full(2, i, np.float32)}

    got = ema.weighted_sum([2.0, -1.0], (load(i) for i in (3, 1)))
    assert got["w"].dtype == np.float32
    np.testing.assert_array_equal(got["w"], [5, 5])
    assert alive == [3, 1]
