"""Maps experiments/ and data/ into the wheel; everything else is in setup.cfg."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

SHIPPED = ("experiments", "data")
folders = [
    folder
    for name in SHIPPED
    for folder in (Path(name), *sorted(Path(name).rglob("*")))
    if folder.is_dir() and folder.name != "__pycache__"
]
shipped = [f"scm_jax.shipped.{'.'.join(folder.parts)}" for folder in folders]
data = {"": ["*.jinja", "weights/*.npz"]}
packages = find_packages(include=["scm_jax", "scm_jax.*"])
if "editable_wheel" in sys.argv:  # reads both folders where they are
    setup(packages=packages, package_data=data)
else:
    setup(
        packages=[*packages, *shipped],
        package_dir={f"scm_jax.shipped.{name}": name for name in SHIPPED},
        package_data=data
        | {
            name: ["*.toml", "*.csv", "*.md", "*.json", "*.npz", "*.safetensors"]
            for name in shipped
        },
    )
