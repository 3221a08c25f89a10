"""Preprocessed scans cached on disk: what an entry contains, how a cache is filled, and how much disk it needs."""

from .filling import fill_cache, workers_of_rank
from .scans import CachedScans, CachedToTensorsd, CacheError, ScanCache

__all__ = ["CacheError", "CachedScans", "CachedToTensorsd", "ScanCache", "fill_cache", "workers_of_rank"]
