"""Synthetic chests whose nodules are known: anatomy, surroundings, scans of them in files."""
