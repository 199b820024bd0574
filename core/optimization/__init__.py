"""Optimizers and what surrounds them: schedules, averages, number formats, and the moments that a checkpoint keeps."""
