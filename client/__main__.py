"""`python -m client` is `ratchet`, for a checkout that is not installed."""

from client.cli import main

main()
