"""What the host must offer, and how it is given."""
