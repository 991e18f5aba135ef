"""Everything that talks to an outside system, and the front door."""
