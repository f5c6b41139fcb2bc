"""foretune: what fine-tuning a language model on a dataset would do, told before anything is trained."""
