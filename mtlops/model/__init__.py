"""The shared model: a frozen trunk, and one adapter and head per task."""
