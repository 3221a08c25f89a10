"""Command line: ``python -m scripts.evaluate COMMAND --option value …``; ``COMMAND --help`` describes a command."""

from __future__ import annotations

import sys
from functools import partial

from ..core.commands import run_command

# Command → "module:function" within this package; a module is imported only when its command is called.
COMMANDS = {
    "luna16": "luna16:luna16",
    "cross_validate": "cross_validation:cross_validate",
    "example": "example:example",
    "lungs": "lungs:score_lungs",
    "calibrate": "calibrate:calibrate",
}

main = partial(run_command, str(__package__), COMMANDS)

if __name__ == "__main__":
    sys.exit(main())
