"""``python -m scm_jax COMMAND``."""

import sys

from scm_jax.main import main

sys.exit(main())
