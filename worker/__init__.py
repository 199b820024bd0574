"""The room that trains: claims jobs, supervises one child process per attempt, serves generation.

Only the child and the inference process import torch; the worker itself stays small, so that nothing a model does can
take it down.
"""
