"""Mathematics of perception rewards: numpy and scipy only, no model, no files, no opinion."""
