"""How long a scan takes and what bounds it: the real graphs timed, the machine's ceilings beside them, one page."""
