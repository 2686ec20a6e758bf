"""The pixel work of one crop on a CPU, after its resizing, in one call."""
