"""Images to forget and images to retain: built-in data sets, and loaders for the user's images."""

from .builtin import BUILT_IN, SIDE, labelled, load
from .columns import load_dataset_columns
from .folders import load_class_folders, load_folders, load_images
from .joining import join, recover
from .opening import open_dataset
from .sets import ForgetRetain, NamedImage, divide

__all__ = [
    "BUILT_IN",
    "SIDE",
    "ForgetRetain",
    "NamedImage",
    "divide",
    "join",
    "labelled",
    "load",
    "load_class_folders",
    "load_dataset_columns",
    "load_folders",
    "load_images",
    "open_dataset",
    "recover",
]
