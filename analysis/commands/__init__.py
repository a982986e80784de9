"""Commands of the laboratory, which `smc-bridge` finds by their entry points."""
