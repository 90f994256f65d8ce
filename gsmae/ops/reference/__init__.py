"""Plain torch twins: what every operation means, in any float type and on any device."""
