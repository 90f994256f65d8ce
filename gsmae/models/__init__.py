"""The networks: encoder, masked autoencoder, classifier, segmenter. Each takes its configuration and a FeatureSpec."""

from .encoder import Encoded, Encoder, EncoderConfig
from .heads import Classifier, ClassifierConfig, Segmenter, SegmenterConfig
from .latent import GaussianLatent, LatentOutput, effective_rank
from .mae import GaussianMAE, MAEOutput, reconstruct
from .masked import LatentConfig, MAEConfig
from .pointnet2 import PointNet2, PointNet2Config

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "Encoded",
    "Encoder",
    "EncoderConfig",
    "GaussianLatent",
    "GaussianMAE",
    "LatentConfig",
    "LatentOutput",
    "MAEConfig",
    "MAEOutput",
    "PointNet2",
    "PointNet2Config",
    "Segmenter",
    "SegmenterConfig",
    "effective_rank",
    "reconstruct",
]
