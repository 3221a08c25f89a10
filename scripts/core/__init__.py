"""The foundation of all other packages: frames, records, errors, files, command lines. Nothing here needs a network."""

from .errors import reason_of, user_error_in

__all__ = ["reason_of", "user_error_in"]
