"""`python -m fedms.cli`."""

from fedms.cli import main

main()
