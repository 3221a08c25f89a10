"""What may be overridden in a graph: one rule for the command line, argument files and Python.

MONAI merges overrides of any origin into one configuration and checks none: a misspelt name is added where nothing
reads it, words of the command line become Python values (``2024_01_15`` the number 20240115), a stray word becomes the
name of the initialisation, which then is skipped, and ``#`` in a path becomes ``::``. :func:`check_run` looks at what
was merged. It stands behind ``scripts_path``, which every component of the graphs requires, and so runs before any of
them is built, whether MONAI initialises or not.
"""

from .call import OverrideError
from .check import check_overlay, check_run

__all__ = ["OverrideError", "check_overlay", "check_run"]
