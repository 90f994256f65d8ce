"""Mesh -> views: cameras, and renderers of one shading specification."""
