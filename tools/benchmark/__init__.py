"""How long a scan takes and what limits it: the real graphs and the machine's own speed, measured side by side."""
