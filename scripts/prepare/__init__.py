"""Data preparation: commands that download data and make and check datalists (``python -m scripts.prepare``)."""
