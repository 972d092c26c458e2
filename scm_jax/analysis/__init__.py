"""Many runs at once: tables, curves, ablations. Reads run directories, runs nothing."""
