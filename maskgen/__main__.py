"""`python -m maskgen`: the same as `maskgen`."""

from maskgen.cli import main

main()
