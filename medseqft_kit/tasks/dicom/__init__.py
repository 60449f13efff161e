"""DICOM at the door: series found, verified and read as volumes. pydicom and SimpleITK are the extra ``[dicom]``."""
