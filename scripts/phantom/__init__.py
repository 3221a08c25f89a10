"""Synthetic chests with known nodules: their anatomy and surroundings, and scans of them as files."""
