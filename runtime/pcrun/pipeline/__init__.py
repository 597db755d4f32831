"""A line at work: frames through the detector, what is watched meanwhile, and being a service."""
