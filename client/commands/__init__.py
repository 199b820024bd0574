"""The commands of `ratchet`, one module per subject."""
