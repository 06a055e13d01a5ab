"""Pages that are one HTML file: no script, no network, light and dark, for a phone and for paper."""
