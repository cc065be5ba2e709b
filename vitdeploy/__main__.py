"""`python -m vitdeploy`: the command line."""

from vitdeploy.cli import main

main()
