"""Errors, files, processes, threads, seeds: what knows nothing of the project's subject."""
