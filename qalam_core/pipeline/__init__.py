"""The stages of a build, one file each; their order is in build.py."""
