"""Reading a bundle: its files, its manifest, and what is checked before any of it is used."""
