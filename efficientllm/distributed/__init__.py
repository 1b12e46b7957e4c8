"""Training in several processes: on the GPUs of one machine, or of several."""
