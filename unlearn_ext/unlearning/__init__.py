"""Unlearning one model: objectives, training, the sweep and its dial, and the folder that a run writes."""
