"""Sums of power laws, fitted in log space: the numerics under ``laws``.

    log y = log( exp(e) + sum_k exp(c_k - a_k log x_k) )

with one row ``theta = (e, c_1 .. c_K, a_1 .. a_K)`` per law: K = 1 is a power law with
offset, K = 2 the loss of Chinchilla (arXiv 2203.15556, Eq. 10, in its log-sum-exp
form). ``log_x``, ``(n, K)``, is centred, so that coefficients and exponents are hardly
correlated and the bounds have a meaning; ``log_y`` is ``(n,)``.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy import optimize

HUBER_DELTA = 1e-3  # of residuals of log y, as Chinchilla's fit has it
MAX_EXPONENT = 4.0
# The offset may fall this far below the smallest y before it counts as zero.
OFFSET_DECADES = 8.0
# Huber's delta in standard deviations: 95 % as efficient as least squares.
_EFFICIENT = 1.345
_ROUNDS = 50  # of estimating the noise; 4 to 10 are usual
_SUBSETS = 100
LEAST = HUBER_DELTA / _EFFICIENT  # a deviation where there is no noise
OUTLYING = 5.0  # deviations beyond which a run is named
# Exponents at which variable projection solves for the coefficients.
_GRID = np.geomspace(0.02, 2.0, 16)


def evaluate(theta: np.ndarray, log_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``log y`` and the share of each term in ``y``, of ``theta`` ``(..., 1 + 2K)``.

    They are ``(..., n)`` and ``(..., n, 1 + K)``; shares add up to 1.
    """
    count = log_x.shape[1]
    terms = np.empty((*theta.shape[:-1], len(log_x), count + 1))
    terms[..., 0] = theta[..., None, 0]
    coefficients, exponents = theta[..., 1 : count + 1], theta[..., count + 1 :]
    terms[..., 1:] = coefficients[..., None, :] - exponents[..., None, :] * log_x
    top = terms.max(-1, keepdims=True)
    powers = np.exp(terms - top)
    total = powers.sum(-1, keepdims=True)
    return (top + np.log(total))[..., 0], powers / total


def jacobian(shares: np.ndarray, log_x: np.ndarray) -> np.ndarray:
    """Derivatives of ``log y`` by ``theta``: ``(..., n, 1 + 2K)``."""
    return np.concatenate([shares, -log_x * shares[..., 1:]], -1)


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """``r^2 / 2`` up to ``delta``, linear beyond; infinity is least squares."""
    size = np.abs(residual)
    beyond = np.maximum(size - delta, 0.0)
    inside = size - beyond
    return 0.5 * inside**2 + inside * beyond


def fit(log_x: np.ndarray, log_y: np.ndarray, delta: float = HUBER_DELTA) -> np.ndarray:
    """``theta`` that minimizes the sum of Huber losses of the log residuals.

    The loss turns linear at ``delta``; infinity fits log y by least squares. Variable
    projection finds the basin: for each exponent of a grid the coefficients are a
    non-negative least-squares problem with one solution. From there the parameters move
    together, first by ``robust_start``, then by ``polish``. On Chinchilla-like data
    this reaches the optimum of a search over thousands of starts.
    """
    near, _, _ = robust_start(log_x, log_y, delta)
    return polish(log_x, log_y, near, delta)


def robust_start(
    log_x: np.ndarray, log_y: np.ndarray, least: float = HUBER_DELTA
) -> tuple[np.ndarray, float, np.ndarray]:
    """A fit that no single run can move, its delta, and how far the runs are from it.

    Least squares on random subsets of the runs, of which the one with the least median
    residual starts; then Huber fits without the runs beyond ``OUTLYING`` deviations of
    the fit before, until nothing changes. ``docs/laws.md`` says what other ways gave.

    Returns:
      ``theta``; delta, 1.345 robust standard deviations and at least ``least``; and the
      residuals in standard deviations, ``(n,)``: the fit rests on runs within
      ``OUTLYING`` of them. Deviations are 0 where nothing is screened: with ``least``
      infinite, or fewer than twice as many runs as parameters.
    """
    start = project(log_x, log_y)
    count, spare = len(log_y), len(log_y) - start.size
    subsets = np.ones((1, count))
    screened = spare >= start.size and np.isfinite(least)
    if screened:
        ranks = np.random.default_rng(0).random((_SUBSETS, count)).argsort(1).argsort(1)
        subsets = np.concatenate([subsets, ranks < count - spare // 2])
    found = refit(log_x, log_y, subsets, start, np.inf, max_steps=100)
    middle = np.median(np.abs(log_y - evaluate(found, log_x)[0]), axis=-1)
    theta, delta, sound = found[middle.argmin()], np.inf, np.ones(count, bool)
    # The least of many medians is too small: a factor of Rousseeuw and Leroy (1987).
    unit = 1.4826 * (1 + 5 / max(spare, 1)) * middle.min() if screened else np.inf
    for _ in range(_ROUNDS):
        before = delta, sound
        sound = np.abs(residuals(theta, log_x, log_y)) <= OUTLYING * max(unit, LEAST)
        delta = max(least, _EFFICIENT * noise(theta, log_x[sound], log_y[sound]))
        (theta,) = refit(log_x, log_y, sound[None], theta, delta, max_steps=100)
        if screened:
            rest = residuals(theta, log_x[sound], log_y[sound])
            unit = np.sqrt(np.sum(rest**2) / (sound.sum() - start.size))
        still = delta == before[0] or abs(delta - before[0]) < 1e-3 * delta
        if still and (sound == before[1]).all():
            break
    return theta, delta, residuals(theta, log_x, log_y) / max(unit, LEAST)


def residuals(theta: np.ndarray, log_x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    """``log y`` less that of the law, ``(n,)``."""
    return log_y - evaluate(theta, log_x)[0]


def noise(theta: np.ndarray, log_x: np.ndarray, log_y: np.ndarray) -> float:
    """Robust standard deviation of log residuals, less the degrees of the parameters.

    Zero where there are no more points than parameters.
    """
    spare = len(log_y) - theta.size
    if spare <= 0:
        return 0.0
    residual = residuals(theta, log_x, log_y)
    return float(1.4826 * np.median(np.abs(residual)) * np.sqrt(len(log_y) / spare))


def project(log_x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    """The best ``theta`` of a grid of exponents, by relative least squares."""
    best, found = np.inf, None
    for exponents in itertools.product(_GRID, repeat=log_x.shape[1]):
        powers = np.exp(-log_x * np.array(exponents))
        columns = np.column_stack([np.ones(len(log_y)), powers])
        relative = columns / np.exp(log_y)[:, None]
        coefficients, error = optimize.nnls(relative, np.ones(len(log_y)))
        if error < best:
            best, found = error, (coefficients, exponents)
    assert found is not None
    floor = 1e-3 * np.exp(log_y.min())  # a coefficient of 0 has no logarithm
    return np.concatenate([np.log(np.maximum(found[0], floor)), found[1]])


def polish(
    log_x: np.ndarray, log_y: np.ndarray, start: np.ndarray, delta: float = HUBER_DELTA
) -> np.ndarray:
    """L-BFGS on the sum of Huber losses from a start, to a tight tolerance."""
    # Sum, not mean, and in units of delta^2: scipy's tolerances are absolute below 1,
    # so with a mean of about 1e-5 the default stops long before the optimum (what
    # happened to Chinchilla's own fit, arXiv 2404.10102).
    unit = delta**2 if np.isfinite(delta) else 1.0

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        expected, shares = evaluate(theta, log_x)
        residual = log_y - expected
        slope = np.clip(residual, -delta, delta) @ jacobian(shares, log_x)
        return huber(residual, delta).sum() / unit, -slope / unit

    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-9}
    return optimize.minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=_bounds(log_x, log_y),
        options={**options, "maxcor": 30},
    ).x


def refit(
    log_x: np.ndarray,
    log_y: np.ndarray,
    weights: np.ndarray,
    start: np.ndarray,
    delta: float = HUBER_DELTA,
    *,
    max_steps: int = 80,
    tolerance: float = 1e-5,
) -> np.ndarray:
    """Many weighted fits at once, each from the same start: what a bootstrap needs.

    Iteratively reweighted least squares with Levenberg's damping, all problems in one
    batch; finished ones leave it. ``weights``, ``(r, n)``, are those of the points in
    each sum; a problem is finished where its sum falls by less than ``tolerance``,
    relatively, or after ``max_steps``. Returns ``(r, 1 + 2K)``.
    """
    weights = np.asarray(weights, float)
    log_y = np.broadcast_to(log_y, weights.shape)
    low, high = np.transpose(_bounds(log_x, log_y))
    result = np.tile(np.clip(start, low, high), (len(weights), 1))
    theta, active = result.copy(), np.arange(len(weights))
    damping = np.full(len(weights), 1e-3)
    quiet = np.zeros(len(weights), int)
    expected, shares = evaluate(theta, log_x)
    residual = log_y - expected
    total = (weights * huber(residual, delta)).sum(-1)
    for step in range(max_steps):
        direction = _step(shares, residual, weights, log_x, delta, damping)
        trial = np.clip(theta + direction, low, high)
        expected, trial_shares = evaluate(trial, log_x)
        trial_residual = log_y - expected
        trial_total = (weights * huber(trial_residual, delta)).sum(-1)
        better = trial_total <= total
        small = (better & (total - trial_total <= tolerance * total)) | (damping > 1e7)
        quiet = np.where(small, quiet + 1, 0)
        theta[better], shares[better] = trial[better], trial_shares[better]
        residual[better] = trial_residual[better]
        total = np.where(better, trial_total, total)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-9, 1e9)
        running = quiet < 2
        if not running.all() or step == max_steps - 1:
            result[active] = theta
            if not running.any():
                break
            parts = (active, theta, shares, residual, total, damping, quiet)
            active, theta, shares, residual, total, damping, quiet, log_y, weights = (
                part[running] for part in (*parts, log_y, weights)
            )
    return result


def bound_reached(theta: np.ndarray, log_x: np.ndarray, log_y: np.ndarray) -> list[int]:
    """Which parameters stand at their bound: data that cannot tell them."""
    low, high = np.transpose(_bounds(log_x, log_y))
    near = (theta <= low + 1e-6) | (theta >= high - 1e-6)
    return [int(i) for i in np.flatnonzero(near)]


def _step(
    shares: np.ndarray,
    residual: np.ndarray,
    weights: np.ndarray,
    log_x: np.ndarray,
    delta: float,
    damping: np.ndarray,
) -> np.ndarray:
    """The damped Gauss-Newton step of each problem, at most 1 in each parameter."""
    slopes = jacobian(shares, log_x)
    size = np.maximum(np.abs(residual), 1e-300)
    weighted = slopes * (weights * np.minimum(1.0, delta / size))[..., None]
    transposed = np.swapaxes(weighted, -1, -2)
    curvature = transposed @ slopes
    gradient = transposed @ residual[..., None]
    diagonal = np.einsum("...ii->...i", curvature)
    # A term that has vanished has no curvature: a part of the largest one stands in.
    scale = diagonal + 1e-8 * diagonal.max(-1, keepdims=True)
    index = np.arange(diagonal.shape[-1])
    curvature[..., index, index] += damping[:, None] * scale + 1e-300
    return np.clip(np.linalg.solve(curvature, gradient)[..., 0], -1.0, 1.0)


def _bounds(log_x: np.ndarray, log_y: np.ndarray) -> list[tuple[float, float]]:
    low, high = float(np.min(log_y)) - OFFSET_DECADES, float(np.max(log_y)) + 3.0
    count = log_x.shape[1]
    return [(low, high)] * (1 + count) + [(0.0, MAX_EXPONENT)] * count
