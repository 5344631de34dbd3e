"""The Hugging Face Hub: whose a token is, how a LoRA gets there, who may use a Space."""
