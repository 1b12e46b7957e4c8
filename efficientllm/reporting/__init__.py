"""The report: one self-contained HTML page made from the records and nothing else."""
