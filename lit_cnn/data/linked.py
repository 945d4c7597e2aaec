"""What a classifier takes from its data module."""

LINKED_FROM_DATA = (
    "num_classes",
    "in_channels",
    "image_size",
    "class_names",
    "class_counts",
    "mean",
    "std",
    "interpolation",
    "crop_pct",
    "pixel_range",
    "background",
)
"""Arguments of `LitClassifier` that are properties of `ImageDataModule`."""
