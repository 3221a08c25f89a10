"""Training: crops, nodule insertion, targets, losses, a disk cache of scans, and adapters to MONAI's engines."""

from .batches import PairWithTruthd, ScoreMasksd, prepare_training_batch
from .cache import CachedScans, CachedToTensorsd, ScanCache, fill_cache, workers_of_rank
from .checkpoints import TrainingState, Validation
from .crops import RandomCropd
from .dataset import CropDataset, EpochSampler
from .handlers import EpochHandler, GradientClip, StepLog, StopOnBadLoss, WeightAverage, ema, trainable
from .insertion import InsertNodulesd
from .losses import ClassificationLoss, MaskLoss, NoduleLoss, RegressionLoss
from .lung_augmentation import CellsToNetworkd, RandChestd, ToCellsd
from .lung_training import PartsLoss, parts_list
from .pictures import PredictionPictures
from .thick_slices import RandThickSlicesd

__all__ = [
    "CachedScans",
    "CachedToTensorsd",
    "CellsToNetworkd",
    "ClassificationLoss",
    "CropDataset",
    "EpochHandler",
    "EpochSampler",
    "GradientClip",
    "InsertNodulesd",
    "MaskLoss",
    "NoduleLoss",
    "PairWithTruthd",
    "PartsLoss",
    "PredictionPictures",
    "RandChestd",
    "RandThickSlicesd",
    "RandomCropd",
    "RegressionLoss",
    "ScanCache",
    "ScoreMasksd",
    "StepLog",
    "StopOnBadLoss",
    "ToCellsd",
    "TrainingState",
    "Validation",
    "WeightAverage",
    "ema",
    "fill_cache",
    "parts_list",
    "prepare_training_batch",
    "trainable",
    "workers_of_rank",
]
