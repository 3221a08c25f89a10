"""The pages in HTML: one a scan, with pictures drawn from its voxels, and the index of a run."""
