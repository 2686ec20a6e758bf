"""From whole slides to patches: tissue segmentation, patch grids, pixels, and the files that keep track of them."""
