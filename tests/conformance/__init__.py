"""Black-box tests of the contract: nothing of the project is imported, so one bug cannot fool both ends."""
