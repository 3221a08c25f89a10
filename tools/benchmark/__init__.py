"""How long a scan takes and what bounds it: the real graphs timed, and the machine's rate beside them, one page."""
