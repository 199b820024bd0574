"""Programs that prepare committed files; none of them is needed at run time."""
