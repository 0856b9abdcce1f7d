"""`python -m torchrec_adrec COMMAND`, the form that torchx launches on every rank."""

from torchrec_adrec.cli.app import main

main()
