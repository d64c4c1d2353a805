"""What really runs: proof, stale processes, overrides."""
