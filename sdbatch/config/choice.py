"""Values that a key may take, where they are a few words. Enums, because OmegaConf checks them by name."""

from enum import Enum


class Preprocessor(Enum):
    """What is done to a control image before the ControlNet sees it."""

    none = "none"
    canny = "canny"


class Dtype(Enum):
    """Number format of the weights in memory."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Prediction(Enum):
    """What the network was trained to predict."""

    epsilon = "epsilon"
    v_prediction = "v_prediction"


class OnOom(Enum):
    """What to do when a batch does not fit: halve it (and record it), or fail its cells."""

    halve = "halve"
    fail = "fail"


class Format(Enum):
    """How images are written."""

    files = "files"
    parquet = "parquet"
    webdataset = "webdataset"


class Tracker(Enum):
    """Where rows are projected to."""

    mlflow = "mlflow"
    none = "none"


class Template(Enum):
    """How a prompt line is read: as it is, or as a dynamicprompts template with all of its variants."""

    none = "none"
    all = "all"


class Resize(Enum):
    """How a source picture is brought to the image's size: its shape changes, its edges are cut, or drawn out to fill the rest."""

    stretch = "stretch"
    crop = "crop"
    pad = "pad"


class Fill(Enum):
    """What inpainting starts from inside the mask: the picture, noise in its place, or nothing. A1111's masked content."""

    original = "original"
    noise = "noise"
    nothing = "nothing"


class Engine(Enum):
    """What makes the images: diffusers, or test patterns to rehearse a job without weights or a GPU."""

    diffusers = "diffusers"
    rehearsal = "rehearsal"
