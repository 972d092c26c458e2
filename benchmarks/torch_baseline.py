"""The U-Net and its steps in PyTorch, eager: what step_cost.py is held against.

The network is the second implementation of tests/golden. As public implementations do,
every pass normalizes the weights and the tangent comes from a pass of its own; the
steps are loss, gradient, Adam and one average, in float32, channels first.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

VERSION = torch.__version__
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "make_edm_networks.py"


def _golden(case: Any) -> Any:
    spec = importlib.util.spec_from_file_location("make_edm_networks", GOLDEN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SIDE, _, module.CHANNELS = case.sample_shape
    module.CLASSES = case.num_classes
    return module


class Steps:
    """Weights, optimizer, average, and the steps on one batch."""

    def __init__(self, case: Any, batch: int):
        golden, s = _golden(case), case.settings
        width, mult = s["width"], s["channel_mult"]
        plan = golden.plan(
            mult, width, width, s["num_blocks"], s["attention_resolutions"], False
        )
        weights = golden.edm2_weights(*plan, width, mult, 64)
        frozen = ("emb_fourier.freqs", "emb_fourier.phases")
        self.weights = {
            k: w.float().requires_grad_(k not in frozen) for k, w in weights.items()
        }
        self.trained = [w for w in self.weights.values() if w.requires_grad]
        self.average = [w.detach().clone() for w in self.trained]
        self.adam = torch.optim.Adam(self.trained, lr=1e-4, betas=(0.9, 0.99))
        side, _, channels = case.sample_shape
        g = torch.Generator().manual_seed(0)
        self.x0 = 0.5 * torch.randn(batch, channels, side, side, generator=g)
        self.onehot = torch.eye(case.num_classes)[
            torch.arange(batch) % case.num_classes
        ]
        self.net = lambda w, x, t: golden.edm2(w, x, t, self.onehot, *plan, 64)

    def point(self) -> tuple[Any, ...]:
        """Times, the noisy sample, its velocity."""
        log_sigma = -1.0 + 1.4 * torch.randn(self.x0.shape[0])
        t = torch.atan(log_sigma.exp() / 0.5)
        cos, sin = (f(t)[:, None, None, None] for f in (torch.cos, torch.sin))
        z = 0.5 * torch.randn_like(self.x0)
        return t, cos, sin, cos * self.x0 + sin * z, cos * z - sin * self.x0

    def update(self, loss: Any) -> None:
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        with torch.no_grad():
            for average, w in zip(self.average, self.trained, strict=True):
                average.lerp_(w, 0.01)

    def diffusion(self) -> None:
        t, _, _, x_t, dx_dt = self.point()
        F = self.net(self.weights, x_t / 0.5, t)
        self.update((0.5 * F - dx_dt).square().mean())

    def sct(self) -> None:
        t, cos, sin, x_t, dx_dt = self.point()
        self.consistency(t, cos, sin, x_t, dx_dt)

    def scd(self) -> None:
        t, cos, sin, x_t, _ = self.point()
        with torch.no_grad():
            dx_dt = 0.5 * self.net(self.weights, x_t / 0.5, t)
        self.consistency(t, cos, sin, x_t, dx_dt)

    def consistency(self, t: Any, cos: Any, sin: Any, x_t: Any, dx_dt: Any) -> None:
        fixed = {k: w.detach() for k, w in self.weights.items()}
        scale = cos * sin
        with torch.no_grad():
            F_fixed, dF = torch.func.jvp(
                lambda x, t: self.net(fixed, x, t),
                (x_t / 0.5, t),
                (scale * dx_dt / 0.5, scale[:, 0, 0, 0]),
            )
        g = -cos.square() * (0.5 * F_fixed - dx_dt) - cos * sin * x_t - 0.5 * dF
        g = g / (g.flatten(1).norm(dim=1)[:, None, None, None] + 0.1)
        F = self.net(self.weights, x_t / 0.5, t)
        self.update((F - F_fixed - g).square().mean())

    def sample(self) -> Any:
        with torch.no_grad():
            x0 = torch.zeros_like(self.x0)
            for i, time in enumerate((np.arctan(80 / 0.5), 1.1)):
                t = torch.full((x0.shape[0],), float(time))
                z = 0.5 * torch.randn_like(x0)
                x = z if i == 0 else np.cos(time) * x0 + np.sin(time) * z
                F = self.net(self.weights, x / 0.5, t)
                x0 = np.cos(time) * x - np.sin(time) * 0.5 * F
            return x0


def make(case: Any, batch: int) -> dict[str, Any]:
    """Name -> a step, or a sample in two steps."""
    torch.set_num_threads(1)
    steps = Steps(case, batch)
    return {n: getattr(steps, n) for n in ("diffusion", "sct", "scd", "sample")}
