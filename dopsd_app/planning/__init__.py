"""What fits, and how long it takes."""
