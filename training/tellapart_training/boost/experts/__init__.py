"""Vision experts, one file each; `expert.py` says what one is, `registry.py` where they are found."""
