"""`python -m torchrec_adrec COMMAND` is what torchx launches on every rank."""

from torchrec_adrec.cli.app import main

main()
