"""Unlearning of one model: objectives, training, the sweep and its dial, and the run's folder."""
