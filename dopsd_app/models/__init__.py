"""Base models: what is known of each, where it lies, how it is fetched, loaded and quantized."""
