"""A run of `make test` repeats itself exactly: Hypothesis derives its examples from the tests. Soaks set
TRIVIUM_EXAMPLES=random and see new ones."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("TRIVIUM_EXAMPLES", "repeatable"))
