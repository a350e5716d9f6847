"""General utilities: files, locks, processes, memory, random numbers."""
