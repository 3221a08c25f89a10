"""DICOM in, DICOM out: a Segmentation and a Structured Report that belong to the study of the scan."""
