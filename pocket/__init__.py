"""How the built-in base was made: its world, the judge that measures it, the stages that train it."""
