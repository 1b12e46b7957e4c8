"""Tuning of a pretrained model on an instruction task; one file per method in `methods/`."""
