"""Backbones: timm networks as stages, their weights, the device that they run on."""
