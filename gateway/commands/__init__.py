"""One module for each family of commands; `gateway.cli` puts them together. Contract, section 6."""
