#!/usr/bin/env bash
# Measures every figure of the README again but the sizes of environments (environments.py), on Magnetic Tile Defects:
# builds bundles with memory banks of three sizes, runs all of pcbench and writes benchmarks/results/*.json and the
# README's tables. Takes about 25 minutes on 2 cores, the peers apart; keep the machine quiet. Needs the project installed
# with its extras export, cpu, openvino.
#
#   scripts/figures.sh DATA WEIGHTS [VIDEO]   DATA: folder with split.json, WEIGHTS: ResNet-18 for ImageNet (.pth),
#                                             VIDEO: of normal parts, shown as a camera for ten minutes more
#   PEERS_BIN=anomalib-env/bin scripts/figures.sh ...  with anomalib, see benchmarks/peers/README.md
set -euo pipefail
data=$(realpath "${1:?the data folder, with split.json}")
weights=$(realpath "${2:?a ResNet-18 weights file}")
peers=${PEERS_BIN:+$(realpath "$PEERS_BIN")/}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
results=benchmarks/results
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The test images of the split, normal and defective.
python - "$data" "$work" <<'PYTHON'
import json, pathlib, sys

data, work = map(pathlib.Path, sys.argv[1:])
normal = [data / "MT_Free" / "Imgs" / name for name in json.loads((data / "split.json").read_text())["test_good"]]
defective = sorted(p for p in data.glob("MT_*/Imgs/*.jpg") if p.parts[-3] != "MT_Free")
for name, files in (("normal", normal), ("defective", defective)):
    (work / f"{name}.txt").write_text("".join(f"{file}\n" for file in files))
PYTHON

pcbench build "$data" --name "tiles, resnet18, false-alarm rate 1%" -o "$results/build-mtd-resnet18.json" -- \
  --weights "$weights"
pcbench build "$data" --name "tiles, resnet18, false-alarm rate 5%" -o "$results/build-mtd-resnet18-rate-5pct.json" -- \
  --weights "$weights" --false-alarm-rate 0.05
pcbench build "$data" --name "tiles, edge-s, false-alarm rate 1%" -o "$results/build-mtd-edge-s.json" -- \
  --backbone edge-s
# Parts that the demo's renderer draws, more of them than the demo has.
python - "$work/parts" <<'PYTHON'
import pathlib, sys

from pcexport.demo.parts import generate_parts

generate_parts(pathlib.Path(sys.argv[1]), train=100, test_good=60, test_per_defect=16, seed=7)
PYTHON
pcbench build "$work/parts" --name "drawn parts, resnet18" -o "$results/build-parts-resnet18.json" -- --weights "$weights"
pcbench build "$work/parts" --name "drawn parts, edge-s" -o "$results/build-parts-edge-s.json" -- --backbone edge-s

pcexport build "$data" -o "$work/bank-1pct.pcbundle" --weights "$weights" --no-evaluate
pcexport build "$data" -o "$work/bank-10pct.pcbundle" --weights "$weights" --no-evaluate --coreset-size 59660 --calibration holdout
# Every patch of every image: a coreset of all would be the same rows.
pcexport build "$data" -o "$work/bank-100pct.pcbundle" --weights "$weights" --no-evaluate --calibration none \
  --coreset random --coreset-ratio 1
# Settings for this machine, with the build's own arithmetic, as a device would have them.
export PCRUN_CACHE="$work/profiles"
for size in 1pct 10pct; do
  pcrun tune --bundle "$work/bank-$size.pcbundle" --provider cpu
done
pcbench search --bundle "$work/bank-1pct.pcbundle" --bundle "$work/bank-10pct.pcbundle" \
  --bundle "$work/bank-100pct.pcbundle" --normal "@$work/normal.txt" --defective "@$work/defective.txt" \
  --name "Magnetic Tile Defects, test images" -o "$results/search-mtd.json"

# Tuned there again, because a device profile is for the versions it was measured with.
for size in 1pct 10pct; do
  if [[ -n $peers ]]; then "${peers}pcrun" tune --bundle "$work/bank-$size.pcbundle" --provider cpu; fi
  # Two thirds defective, on which verification costs more.
  "${peers}pcbench" peers --bundle "$work/bank-$size.pcbundle" --weights "$weights" --name "Magnetic Tile Defects, test images" \
    -o "$results/peers-mtd-$size.json" "@$work/normal.txt" "@$work/defective.txt"
done

for precision in int8 bf16; do
  flags=()
  if [[ $precision == bf16 ]]; then flags=(--provider openvino); fi
  pcexport build "$data" -o "$work/$precision.pcbundle" --weights "$weights" --precision "$precision" --allow-flips \
    "${flags[@]}"
done
pcexport build "$data" -o "$work/fp32.pcbundle" --weights "$weights"
pcexport build "$data" -o "$work/edge-s-fp32.pcbundle" --backbone edge-s
pcexport build "$data" -o "$work/edge-s-int8.pcbundle" --backbone edge-s --precision int8 --allow-flips
pcbench embedder --bundle "$work/fp32.pcbundle" --bundle "$work/int8.pcbundle" --bundle "$work/bf16.pcbundle" \
  --bundle "$work/edge-s-fp32.pcbundle" --bundle "$work/edge-s-int8.pcbundle" \
  --provider cpu --provider openvino --name "Magnetic Tile Defects" -o "$results/embedder-mtd.json" "$data/MT_Free/Imgs"

# All patches of all images, projected as a build does it.
python - "$work" <<'PYTHON'
import pathlib, sys

import numpy as np

from pcexport.memory_bank.projection import fit_projection
from pcexport.memory_bank.store import ArrayRows

work = pathlib.Path(sys.argv[1])
rows = np.load(work / "bank-100pct.pcbundle" / "memory_bank.npy")
np.save(work / "projected.npy", rows @ fit_projection("pca", ArrayRows(rows), 128, seed=0))
PYTHON
pcbench coreset --embeddings "$work/projected.npy" --name "Magnetic Tile Defects" -o "$results/coreset-mtd.json"

if [[ -n ${3:-} ]]; then
  # Every eighth frame: neighbours are nearly equal.
  python - "$3" "$work/frames" <<'PYTHON'
import pathlib, sys

import cv2

video, folder = cv2.VideoCapture(sys.argv[1]), pathlib.Path(sys.argv[2])
folder.mkdir()
number = 0
while (read := video.read())[0]:
    if number % 8 == 0:
        cv2.imwrite(str(folder / f"{number:05d}.png"), read[1])
    number += 1
PYTHON
  pcexport build "$work/frames" -o "$work/video.pcbundle" --weights "$weights" --coreset-size 5966
  pcbench soak --bundle "$work/video.pcbundle" --video "$3" --minutes 10 --name "$(basename "${3%.*}")" \
    -o "$results/soak.json"
fi

# Two networks, each with memory banks of 1 % and 10 % of the patches, in two precisions. The large network's weights are
# random: good for its latency alone. Its large bank is chosen at random, too, which takes minutes less.
sweep=()
for network in resnet18 wide_resnet50_2; do
  for precision in fp32 int8; do
    for bank in 1pct 10pct; do
      flags=(--weights "$weights")
      if [[ $network == wide_resnet50_2 ]]; then flags=(--weights untrained); fi
      if [[ $bank == 10pct ]]; then flags+=(--coreset-size 59660 --calibration holdout); fi
      if [[ $network$bank == wide_resnet50_210pct ]]; then flags+=(--coreset random); fi
      bundle="$work/$network-$precision-$bank.pcbundle"
      pcexport build "$data" -o "$bundle" --backbone "$network" --precision "$precision" --allow-flips --no-evaluate \
        --no-tune "${flags[@]}"
      sweep+=(--bundle "$bundle")
      if [[ $network == resnet18 ]]; then pcexport eval "$bundle" "$data" -o "$work/$network-$precision-$bank.html"; fi
    done
  done
done
# Every tenth image. Brute force over large banks of the large network takes seconds an image: few queries must do.
for kind in normal defective; do
  mkdir "$work/$kind"
  awk 'NR % 10 == 1' "$work/$kind.txt" | xargs cp -t "$work/$kind"
done
rm -rf "$results/latency-mtd" # what it holds would be kept, as in a sweep that was interrupted
for threads in 1 2; do
  pcbench latency "${sweep[@]}" --threads "$threads" --exactness none --exactness image --exactness mask --exactness full \
    --images "$work/normal" --defective "$work/defective" --duration 4 --queries 10 \
    -o "$results/latency-mtd"
done
pcbench report "$results/latency-mtd" "$work"/resnet18-*.json -o "$work/latency.html" --title "Magnetic Tile Defects"

pcbench readme
