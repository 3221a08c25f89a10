"""Settings that all tests share."""

from __future__ import annotations

from hypothesis import settings

# The same examples in every run, and no time limit for one of them: a busy machine must not decide whether a law holds.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
