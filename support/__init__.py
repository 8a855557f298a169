"""What the lesson stands on: formats, folders, downloads, speed. A learner may skip it."""
