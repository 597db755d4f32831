"""How a detector runs on this machine: what is fastest, stored, and chosen."""
