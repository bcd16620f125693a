"""The demo job: a sample volume made on the spot, the main job on it, and a picture."""
