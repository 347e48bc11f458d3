"""Data: records, readers, frozen datasets, splits, and the views that feed losses. Never imports torch."""
