"""Package managers: apt, and later dnf."""
