#!/usr/bin/env bash
# Trains the shipped student again: the same pictures, seed and schedule. Hours on 2 cores; goes on where it was interrupted.
# Bytes repeat on the same kind of processor with the same versions (constraints.txt); elsewhere rounding differs.
#
#   scripts/train_students.sh WEIGHTS WORK   WEIGHTS: torchvision's ResNet-18 for ImageNet (.pth), WORK: a folder, 7 GB
set -euo pipefail
weights=$(realpath "${1:?a ResNet-18 weights file}")
work=$(realpath -m "${2:?a folder to work in}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
students=exporter/pcexport/backbones/students
pcexport distill --teacher resnet18 --weights "$weights" --student edge-s --steps 24000 --work "$work/edge-s" \
  -o "$work/edge-s.onnx" --force
cp "$work/edge-s.onnx" "$students/edge-s.onnx"
cp "$work/edge-s.json" "$students/edge-s.json"
cp "$work/edge-s/log.jsonl" benchmarks/results/distill-edge-s.jsonl
