"""The passes of a simulation: one file each, load, compute, store."""
