"""What develops the bundle and is not part of it: timing, descriptions of the networks, development data, packages."""
