"""Data, models and helpers that tests share."""
