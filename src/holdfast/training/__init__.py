"""The one loop and its proof: order, objective contract, fit, ledger, checkpoints, determinism, verify, replay, trace.

It knows neither language nor control. `verify` and `trace` work without torch, so nothing is imported here.
"""
