"""Images in: decoding and preprocessing, folders and .npz files, synthetic images."""
