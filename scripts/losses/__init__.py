"""Training losses: network output and targets in, one scalar out."""

from .nodule import NoduleLoss, focal_terms

__all__ = ["NoduleLoss", "focal_terms"]
