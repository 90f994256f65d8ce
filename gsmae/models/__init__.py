"""The networks: encoder, masked autoencoder, classifier, segmenter. Each takes its configuration and a FeatureSpec."""

from .encoder import Encoded, Encoder, EncoderConfig
from .heads import Classifier, ClassifierConfig, Segmenter, SegmenterConfig
from .mae import GaussianMAE, MAEConfig, MAEOutput, reconstruct

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "Encoded",
    "Encoder",
    "EncoderConfig",
    "GaussianMAE",
    "MAEConfig",
    "MAEOutput",
    "Segmenter",
    "SegmenterConfig",
    "reconstruct",
]
