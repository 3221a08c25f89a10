"""What the DICOM objects have in common: who made them, their terms, and how they are finished.

highdicom builds them (https://highdicom.readthedocs.io). It checks and converts what it copies, and refuses objects
for names and dates that scanners do write; so it is given empty ones, and patient and study are copied afterwards as
they stand in the slices.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import highdicom
from pydicom.uid import UID, generate_uid

from .source import SourceSeries

MAKER = "The lung nodule bundle contributors"
LONG_STRING = 64  # characters of a DICOM value of type LO


@dataclass(frozen=True)
class Device:
    """The program that made the objects.

    Attributes:
        name: of the bundle.
        version: of the bundle.
        weights: file name and checksum; stands for a serial number.
    """

    name: str
    version: str
    weights: str

    @classmethod
    def of(cls, model: Mapping[str, str]) -> Device:
        """From the facts about bundle and weights that a result holds."""
        name, version, weights = (model.get(key, "unknown")[:LONG_STRING] for key in ("name", "version", "weights"))
        return cls(name, version, weights)

    @property
    def uid(self) -> UID:
        """The same for the same bundle and weights."""
        text = "/".join((self.name, self.version, self.weights))
        return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}")


def new_uid() -> UID:
    """A UID of its own, 2.25 and a random UUID (PS3.5, B.2)."""
    return generate_uid(prefix=None)


def identification(device: Device, series_number: int) -> dict[str, Any]:
    """Arguments that highdicom takes for any object: a series and an instance of its own, and who made it."""
    return {
        "series_instance_uid": new_uid(),
        "series_number": series_number,
        "sop_instance_uid": new_uid(),
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": device.name,
        "software_versions": device.version,
        "device_serial_number": device.weights,
        "specific_character_set": None,
    }


def tracking_id(label: int) -> str:
    """Ties a segment, a measurement group and the label in the mask to each other."""
    return f"Nodule {label}"


def finished(made: highdicom.SOPClass, source: SourceSeries) -> bytes:
    """Add patient, study and character set of the slices; the object as a file."""
    if "SpecificCharacterSet" in source.header:
        made["SpecificCharacterSet"] = source.header["SpecificCharacterSet"]
    made.copy_patient_and_study_information(source.header)
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
