"""From text to batches: tokenizers, chat templates, encoded sources on the disk, and what lies in which row."""
