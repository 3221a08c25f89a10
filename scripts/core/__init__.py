"""What everything else stands on: frames, records, errors, files, command lines; nothing here knows a network."""

from .errors import UserError, prepare_process, reason_of, show_user_errors_plainly

__all__ = ["UserError", "prepare_process", "reason_of", "show_user_errors_plainly"]
