"""Evaluation: scores results of the bundle and of any other nodule detector (``python -m scripts.evaluate``)."""
