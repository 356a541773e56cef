"""Image data sets, one a file, and what is prepared from images."""
