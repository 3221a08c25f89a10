"""From maps to nodules: candidates, outlines, measurements, the place in the lungs."""

from .candidates import DecodeCandidatesd, DropOutsideLungsd
from .location import LocateNodulesd
from .masks import OutlineNodulesd

__all__ = ["DecodeCandidatesd", "DropOutsideLungsd", "LocateNodulesd", "OutlineNodulesd"]
