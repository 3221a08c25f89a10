"""Lung nodule detection and segmentation in chest CT, as MONAI components (see README.md)."""
