"""Data sets: `prepare` makes one array on disk of what the user placed or what can be fetched; `prepared` reads it."""
