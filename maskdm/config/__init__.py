"""The schema of all settings, and their strict reading."""
