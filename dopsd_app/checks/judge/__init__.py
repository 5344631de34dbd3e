"""The judge of the built-in base's pictures: what they show, and how like the world's own they are."""
