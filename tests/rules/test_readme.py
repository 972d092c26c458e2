"""The recipes of the documentation run as printed, and what it names is there."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks, objectives
from scm_jax.types import Batch

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "architecture.md")
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
BLOCKS = [
    block
    for text in TEXTS.values()
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
]


def defined_by(name: str):
    """What the one block that defines ``name`` makes of it."""
    (block,) = [b for b in BLOCKS if re.search(rf"(class|def) {name}\b", b)]
    scope = {"__name__": "readme"}
    exec(compile(block, "documentation", "exec"), scope)
    return scope[name]


@pytest.fixture
def registered(monkeypatch):
    """Adds an entry to a registry for one test."""
    return lambda registry, name, value: monkeypatch.setitem(registry, name, value)


def test_add_a_method_and_a_backbone(registered):
    registered(objectives.OBJECTIVES, "high_noise", defined_by("HighNoise"))
    registered(networks.NETWORKS, "linear", defined_by("Linear"))
    net = networks.build("linear", (4, 2), 0)
    objective = objectives.build("high_noise", sigma_data=0.5)
    key = jax.random.key(0)
    params = {"net": net.init(key), "objective": objective.init(key)}
    batch = Batch(x=0.5 * jax.random.normal(key, (8, 4, 2)))
    out = objective(net.apply, params, batch, key=key, step=jnp.int32(0))
    assert out.per_example.shape == (8,) and np.isfinite(out.loss)
    # All times are high: P_mean = 1 is sigma = e, t = 1.39.
    counts = np.asarray(out.metrics["bins"]["count"])
    assert counts[4:].sum() > counts[:4].sum()


def test_add_a_dataset():
    dataset = defined_by("make_ramps")()
    batch = dataset.to_batch(next(dataset.iterator(4, seed=0)))
    assert batch.x.shape == (4, 8, 1) and batch.x.dtype == np.float32
    assert dataset.arrays()[0].shape == (16, 8, 1)


def test_files_that_the_pages_name_are_there():
    named = {
        name
        for text in TEXTS.values()
        for name in re.findall(
            r"`((?:scm_jax|docs|experiments|tests|data)/[\w/.]+)`", text
        )
    }
    assert len(named) > 15
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", [*sorted((ROOT / "docs").glob("*.md")), PAGES[0]])
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8"))
    inside = [t for t in targets if "://" not in t and t]
    assert not [t for t in inside if not (page.parent / t).exists()]


def test_the_readme_is_short():
    assert len(TEXTS[PAGES[0]].splitlines()) <= 140
