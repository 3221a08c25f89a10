"""From maps to nodules: candidates, masks, measurements, the place in the lungs."""

from .candidates import DecodeCandidatesd, DropOutsideLungsd
from .location import LocateNodulesd
from .masks import SegmentNodulesd

__all__ = ["DecodeCandidatesd", "DropOutsideLungsd", "LocateNodulesd", "SegmentNodulesd"]
