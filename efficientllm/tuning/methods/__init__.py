"""Tuning methods: each module exposes `METHOD`, an instance of `TuningMethod`; its file name is the method's key."""
