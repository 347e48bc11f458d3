"""`python -m holdfast`, and `torchrun --nproc-per-node N -m holdfast`."""

from holdfast.cli import main

main()
