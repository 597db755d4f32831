"""The YAML recipes, installed as the package `pcexport.recipes` (see package_dir in setup.cfg)."""
