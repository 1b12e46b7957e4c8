"""What tuning starts from: a pretraining run of ours, or somebody's checkpoint, brought into one form."""
