"""One training loop for pretraining and tuning: steps, schedule, evaluation, checkpoints, curves."""
