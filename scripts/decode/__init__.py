"""From the network's maps to nodules: candidates, masks, measurements, location in the lungs."""

from .candidates import DecodeCandidatesd, DropOutsideLungsd
from .location import LocateNodulesd
from .masks import SegmentNodulesd

__all__ = ["DecodeCandidatesd", "DropOutsideLungsd", "LocateNodulesd", "SegmentNodulesd"]
