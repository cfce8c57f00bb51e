"""Training: a seeded loop, augmentations, progress, and the tasks that the drivers know."""
