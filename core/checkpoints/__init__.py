"""What a checkpoint is made of, how it is saved, opened and kept, and what may change when a run goes on."""
