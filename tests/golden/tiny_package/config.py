# qalam config 1
# fmt: off
# ruff: noqa
FORMAT = 1
VOCAB_SIZE = 300
DIM = 16
NUM_HEADS = 2
NUM_LAYERS = 1
MAX_SEQ_LEN = 16
TIED = True
ACTIVATION = "gelu"
PARAMETERS = 8368
