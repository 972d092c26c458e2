"""TrigFlow: algebra, changes of parameterization, closed forms (arXiv 2410.11081)."""

# ruff: noqa: F401  (all of these names are the interface)
from scm_jax.trigflow.algebra import (
    SIGMA_MAX,
    SIGMA_MIN,
    T_MID,
    D_from_F,
    F_from_f,
    F_from_x0_z,
    Time,
    as_time,
    consistency_grid,
    ddim_step,
    edm_grid,
    expand,
    f_from_F,
    interpolate,
    log_sigma,
    lognormal_proposal,
    t_max,
    time_from_sigma,
    time_from_t,
    time_from_tau,
    velocity,
    z_from_F,
)
from scm_jax.trigflow.conversions import (
    PARAMETERIZATIONS,
    PREDICTIONS,
    F_from_prediction,
    edm_c_noise,
    edm_coefficients,
    from_edm,
    from_rectified_flow,
    from_trigflow,
    logit_normal_proposal,
    prediction_from_F,
    rectified_flow_coefficients,
    score_from_F,
    to_trigflow,
    vp_coefficients,
)
from scm_jax.trigflow.published import ADAPTERS, from_dit, from_sana_sprint, from_sit
