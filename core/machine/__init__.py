"""The operating system's side: disks, files from anywhere, processes, and places to fail at. Light."""
