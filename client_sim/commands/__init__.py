"""The commands of `vestnik-sim`, a file for each kind."""
