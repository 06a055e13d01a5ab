"""What several tests share: doubles of foreign libraries and devices, and files made by hand."""
