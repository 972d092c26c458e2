"""What worker processes import once, before they are forked."""

import array_record.python.array_record_module  # noqa: F401
import PIL.Image  # noqa: F401
import tensorflow_datasets  # noqa: F401
from tensorflow_datasets.core import example_serializer  # noqa: F401

from scm_jax.datasets.preparation import shards  # noqa: F401
