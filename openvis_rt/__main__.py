"""``python -m openvis_rt`` is the command ``openvis``."""

from openvis_rt.cli.main import main

main()
