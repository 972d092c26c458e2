"""Maps experiments/ and data/ into the wheel; everything else is in setup.cfg."""

import sys

from setuptools import find_packages, setup

SHIPPED = {f"scm_jax.shipped.{name}": name for name in ("experiments", "data")}
KINDS = ("py", "toml", "csv", "md", "json", "npz", "safetensors")
PATTERNS = [f"**/*.{kind}" for kind in KINDS]
packages = find_packages(include=["scm_jax", "scm_jax.*"])
folders, files = {}, {"": ["*.jinja", "weights/*.npz"]}
if "editable_wheel" not in sys.argv:  # which reads both folders where they are
    folders = SHIPPED
    files |= {name: PATTERNS for name in SHIPPED}
setup(packages=[*packages, *folders], package_dir=folders, package_data=files)
