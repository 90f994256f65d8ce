"""Meshes -> splats: sources list them, formats read them, render shows them, fit turns views into Gaussians."""
