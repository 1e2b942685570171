"""Models: where weights come from, what they are called, and how they are loaded. Safetensors and GGUF, no pickle."""
