"""Which weight decay should I pretrain with, if the model will be fine-tuned afterwards?"""

__version__ = "0.1.0"
