"""MedVisionLlama: 3D medical image segmentation through a frozen language-model block.

Research software, not a medical device.
"""

__version__ = "0.1.0"
