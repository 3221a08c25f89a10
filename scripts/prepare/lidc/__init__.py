"""LIDC-IDRI: turns the readers' outlines into nodules, masks and datalists.

In the order of the data: ``readings`` and ``segmentation_objects`` read what the readers drew (LIDC's XML; the DICOM
objects of the Imaging Data Commons), ``nodules`` places it on the scan's grid and joins the readings of one nodule,
``scans`` finds the series and their readings, ``outputs`` writes the results, and ``command`` runs it all.
"""
