"""A script a claim: each prints its figures side by side, from one run, with the machine."""
