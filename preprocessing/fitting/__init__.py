"""Views -> splat: the optimisation of one object, and of many in one launch."""
