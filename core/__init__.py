"""The craft of training: configuration, data, models, the loop, checkpoints, generation.

Nothing here knows a database or HTTP. `config`, `events`, `errors` and `checkpointing` are light: they import
without torch, so that the service can use them.
"""
