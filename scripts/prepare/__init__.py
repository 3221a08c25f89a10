"""Data preparation: commands that make datalists (``python -m scripts.prepare``)."""
