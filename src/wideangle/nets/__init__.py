"""Models in the NTK parameterisation (weights N(0, 1), 1/sqrt(fan-in) in the forward pass) and PyTorch's.

Every layer is a plain nn.Linear or nn.Conv2d whose input is multiplied by the layer's factor, so
whatever looks at a module's input, output and weight sees the usual ones.
"""

from __future__ import annotations

from wideangle.nets._neuron_graph import NeuronGraph, NeuronLayer
from wideangle.nets.activations import ACTIVATIONS, activation_function, c_sigma
from wideangle.nets.attention import Transformer
from wideangle.nets.builtin import MODELS, build
from wideangle.nets.conv import ConvNet
from wideangle.nets.dag import DAG
from wideangle.nets.mlp import MLP
from wideangle.nets.resnet import ResNet

__all__ = [
    "ACTIVATIONS",
    "DAG",
    "MLP",
    "MODELS",
    "ConvNet",
    "NeuronGraph",
    "NeuronLayer",
    "ResNet",
    "Transformer",
    "activation_function",
    "build",
    "c_sigma",
]
