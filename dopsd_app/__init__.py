"""D-OPSD: a LoRA for few-step image models that keeps the few steps."""
