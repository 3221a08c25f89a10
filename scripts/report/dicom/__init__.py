"""DICOM in, DICOM out: a Segmentation and a Structured Report in the study of the scan."""
