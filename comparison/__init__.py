"""Strategies x base decays x seeds in one or more domains: the grid, its runs, their statistics, the report."""
