"""What both trainers stand on: options, process group, seeding, checkpoints, the run's folder, tables, figures."""
