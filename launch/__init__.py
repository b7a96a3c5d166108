"""Launchers: the members of a sweep, or a whole study, as jobs on one of many backends."""
