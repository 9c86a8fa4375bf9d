"""The base of both trainers: options, process group, seeding, checkpoints, run folder, tables, figures."""
