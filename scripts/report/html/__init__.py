"""The HTML pages: one per scan, with pictures drawn from its voxels, and the index of a run."""
