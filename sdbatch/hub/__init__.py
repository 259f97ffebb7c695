"""The Hugging Face Hub: repositories by id in place of files, and the download of presets."""
