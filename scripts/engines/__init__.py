"""Thin adapters between our data and MONAI's stock engines: batches, training handlers, checkpoints, pictures."""

from .batches import PairWithTruthd, ScoreOutlinesd, prepare_training_batch
from .checkpoints import TrainingState, Validation
from .pictures import PredictionPictures
from .training import EpochHandler, GradientClip, StepLog, StopOnBadLoss, WeightAverage, averaged, trainable

__all__ = [
    "EpochHandler",
    "GradientClip",
    "PairWithTruthd",
    "PredictionPictures",
    "ScoreOutlinesd",
    "StepLog",
    "StopOnBadLoss",
    "TrainingState",
    "Validation",
    "WeightAverage",
    "averaged",
    "prepare_training_batch",
    "trainable",
]
