"""Language training: options, text, tokenizers, model, engine, and the training loop."""
