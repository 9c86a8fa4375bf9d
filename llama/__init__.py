"""Language training: text as documents, tokens, sequences and batches, and where a stream of them stands."""
