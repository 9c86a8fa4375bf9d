"""What is particular to images: loaders, transforms, models, fingerprints, and a whole run."""
