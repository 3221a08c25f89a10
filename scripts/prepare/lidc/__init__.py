"""LIDC-IDRI: from the readers' outlines to nodules, masks and datalists, in the order in which the data travels.

``readings`` and ``segmentation_objects`` read what the readers drew (LIDC's XML; the DICOM objects of the Imaging Data
Commons), ``nodules`` puts it on the scan's grid and joins what belongs to one nodule, ``scans`` finds the series and
their readings, ``outputs`` writes, ``command`` runs all of it.
"""
