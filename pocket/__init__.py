"""How the built-in base model was made: the world it knows, the judge that measures it, the stages that train it."""
