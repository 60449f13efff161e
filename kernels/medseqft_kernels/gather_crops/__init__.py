"""Crops cut out of volumes that are resident on the device."""
