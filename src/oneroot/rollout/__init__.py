"""Moving containers from one generation to another."""
