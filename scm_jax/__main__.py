"""``python -m scm_jax COMMAND``."""

import sys

from scm_jax.commands.main import main

sys.exit(main())
