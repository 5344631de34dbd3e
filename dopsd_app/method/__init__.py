"""The training, on pure tensors."""
