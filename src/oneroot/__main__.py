"""``python -m oneroot``."""

from oneroot.cli.main import main

main()
