"""Visual Caption Boosting: an image's human captions merged into one richer caption, checked against them."""
