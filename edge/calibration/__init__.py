"""From activation statistics to an INT8 calibration table, its checks, and its conversions to other formats."""
