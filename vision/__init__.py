"""Vision training: options, loaders, transforms, models, fingerprints, and the training loop."""
