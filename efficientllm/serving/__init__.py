"""A serving workload for measurement: prefill and forced-length greedy decoding with a static cache."""
