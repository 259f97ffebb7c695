"""What a sweep leaves behind: images, rows, and the promise that a row is there only when its image is."""
