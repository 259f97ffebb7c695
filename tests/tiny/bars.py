"""What the committed weights must reach, in one versioned place: raise these when better weights come."""

WEIGHTS_VERSION = 2
TOTAL_MB = 24
BASE_MB = 14
NOUNS = 128
# Share of a dozen nouns recognised among all, from thumbnails.
RECOGNISED = 0.75
# How much nearer a style LoRA must bring the picture to its style at full strength.
STYLE_GAIN = 0.0
# Edge agreement of the ControlNet at scale 1, over that at scale 0.
EDGE_GAIN = 1.2
