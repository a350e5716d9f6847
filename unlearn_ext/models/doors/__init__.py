"""Doors: models from checkpoint files in the layouts of other projects."""
