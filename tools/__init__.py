"""Tools for developing the bundle, not part of it: timing, descriptions of the networks, development data, packages."""
