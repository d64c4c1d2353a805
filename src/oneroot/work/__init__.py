"""What every change is made of: plan, show, apply; journal, locks, progress, parallelism."""
