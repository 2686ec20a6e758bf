"""Building blocks of the backbones and heads, one layer a file."""
