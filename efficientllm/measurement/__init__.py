"""Measuring: what this machine is, what a workload costs on it, and how sure each figure is."""
