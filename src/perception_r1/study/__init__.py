"""Studies: grids of runs that differ in one setting, declared in recipes/studies/, told in one table and one plot."""
