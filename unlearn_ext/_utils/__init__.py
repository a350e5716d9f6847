"""What has nothing to do with unlearning: files, locks, processes, memory, random numbers."""
