"""Mathematics on tensors: torch and the standard library, no files, no models by name."""
