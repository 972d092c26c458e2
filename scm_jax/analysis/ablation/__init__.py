"""Ablations: paired differences of one setting, with intervals."""
