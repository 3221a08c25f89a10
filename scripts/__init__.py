"""Lung nodules in chest CT: detection, outline and score, as MONAI components (see README.md)."""
