"""The foundation of all other packages: frames, records, errors, files, command lines. Nothing here needs a network."""

from .errors import UserError, prepare_process, reason_of, show_user_errors_plainly

__all__ = ["UserError", "prepare_process", "reason_of", "show_user_errors_plainly"]
