"""Calls of all commands, which together have all flags: what `test_flags` runs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

NO_ENGINE = r"The engine's header line\.engine\.json cannot be read .*`pcrun compile` writes it"


@dataclass(frozen=True)
class Run:
    """A call of a command in the workplace.

    Attributes:
        command: as in the command tree.
        arguments: as in a shell; {server} is the address of a web server that takes everything.
        code: exit code.
        says: regular expressions found in what it prints, on either stream.
        writes: files or folders that are there and not empty afterwards.
        absent: those that are not.
        holds: files with regular expressions that are found in them.
        needs_torch: whether it cannot run without.
    """

    command: str
    arguments: str
    code: int = 0
    says: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    holds: tuple[tuple[str, str], ...] = ()
    needs_torch: bool = field(default=False, kw_only=True)

    @property
    def words(self) -> list[str]:
        return shlex.split(self.arguments)

    @property
    def flags(self) -> set[str]:
        return {word for word in self.words if word.startswith("-")} - {"-", "--"}


# The first two are builds whose bundles record what was asked for.
PCEXPORT = (
    Run(
        "pcexport build",
        "parts/bottle -o new.pcbundle --backbone resnet18 --layers layer1,layer2 --weights untrained "
        "--image-size 72 --crop-size 64 --resize-mode keep_aspect --aggregation locally_aware "
        "--neighbourhood 1 --grid 6 --batch dynamic --opset 17 --parity-images 1 --parity-tolerance "
        "0.01 --embed-with onnxruntime --calibration none --no-evaluate --no-tune",
        says=(
            "parity: ",
            "no thresholds|calibration",
        ),
        needs_torch=True,
    ),
    Run(
        "pcexport build",
        "parts/bottle --output new.pcbundle --config strict.yaml --force --json --layout mvtec "
        "--white-level-16bit 4095 --no-strict --backbone students/edge-s.onnx --image-size 64x96 "
        "--precision int8 --quantisation-images 4 --int8-activations unsigned --project 8 "
        "--allow-flips --coreset random --coreset-ratio 0.5 --coreset-size 60 --projection random "
        "--projection-dim 6 --search-dim 4 --index hnsw --hnsw-m 4 --hnsw-ef-construction 20 --ef 8 "
        "--image-score reweighted --neighbours 3 --map-sigma-px 2 --calibration holdout "
        "--holdout-fraction 0.4 --folds 3 --false-alarm-rate 0.2 --golden-samples 2 --evaluate --tune "
        "--seed 3 --provider cpu --threads 1",
        says=(
            r'"image_auroc": [01]\.',
            r'"tune": [\d.]+',
            '"median_ms"',
        ),
    ),
    Run(
        "pcexport build",
        "parts/bottle -o new.pcbundle --config strict.yaml --strict --no-allow-flips --backbone "
        "edge-s --image-size 64x96 --threads 1 --calibration none --no-evaluate --no-tune",
        2,
        says=(r"broken\.png",),
        absent=("new.pcbundle",),
    ),
    Run(
        "pcexport eval",
        "bottle.pcbundle parts/bottle -o report.html --layout mvtec --threshold 2 --pixel-threshold 3 "
        "--provider cpu --precision fp32 --threads 1 --exactness full --no-profile --json",
        says=(r'"threshold": 2\.0',),
        writes=(
            "report.html",
            "report.json",
            "report.csv",
        ),
    ),
    Run(
        "pcexport eval",
        "--compare bottle.pcbundle bottle.pcbundle parts/bottle",
        says=("difference|bottle",),
    ),
    Run(
        "pcexport eval",
        "bottle.pcbundle broken --strict",
        2,
        says=(r"broken\.png",),
    ),
    Run(
        "pcexport calibrate",
        "bottle.pcbundle good -o new.pcbundle --false-alarm-rate 0.01 --provider cpu --precision fp32 "
        "--no-profile --allow-shortage --json",
        says=(r'"false_alarm_rate_requested": 0\.01',),
        writes=("new.pcbundle",),
    ),
    Run(
        "pcexport calibrate",
        "bottle.pcbundle good --false-alarm-rate 0.2 --force",
        says=(r"bottle\.pcbundle +\(directory\)",),
    ),
    Run(
        "pcexport inspect",
        "bottle.pcbundle --json",
        says=('"digest": "[0-9a-f]{64}"',),
    ),
    Run(
        "pcexport pack",
        "bottle.pcbundle --output taken.zip",
        2,
        says=(r"taken\.zip .*--force",),
    ),
    Run(
        "pcexport pack",
        "bottle.pcbundle -o taken.zip --force",
        says=(r"taken\.zip \(0\.\d MB\)",),
    ),
    Run(
        "pcexport backbones",
        "",
        says=(
            "resnet18",
            "edge-s",
        ),
    ),
    Run(
        "pcexport datasets",
        "--json",
        says=('"name": "mvtec"',),
    ),
    Run(
        "pcexport distill",
        "--teacher resnet18 --weights untrained --student edge-s --images good --pictures 272 --size "
        "32 --steps 2 --batch 2 --learning-rate 0.01 --seed 1 --teacher-scale 0.5 -o taken.onnx "
        "--work work --force",
        says=(r"taken\.onnx \([\d.]+ MB\)",),
        writes=(
            "taken.json",
            "work",
        ),
        needs_torch=True,
    ),
    Run(
        "pcexport demo",
        "-o taken.zip",
        2,
        says=(r"taken\.zip is a file.*choose another --output",),
    ),
    Run(
        "pcexport demo",
        "--output demo",
        says=("demo/parts/test/good/000.png",),
        writes=(
            "demo/parts.pcbundle",
            "demo/overlays",
        ),
    ),
)

PCRUN = (
    Run(
        "pcrun",
        "--bundle bottle.pcbundle --images incoming good/000.png --threshold 0.001 --pixel-threshold "
        "0.002 --debounce 1/2 --drift-window 20 --provider cpu --precision fp32 --threads 1 "
        "--exactness image --search hnsw --ef 8 --no-profile --format csv --output out/results.csv "
        "--rotate-mb 0.001 --keep 2 --save-overlays overlays --save-maps maps --map-format png "
        "--fail-on-anomaly",
        1,
        holds=(("out/results.csv", r",anomalous,.*,image,hnsw,\d+,"),),
        writes=(
            "out/results.csv.2",
            "overlays/incoming_000.png",
            "maps/good_000.png",
        ),
        absent=("out/results.csv.3",),
    ),
    Run(
        "pcrun",
        "--bundle bottle.pcbundle --video line.mp4 --fps 12.5 --rotate 90 --roi 4,8,40,60 "
        "--max-frames 4 --duration 600 --threshold 0.001 --save-video shown.mp4 --video-fps 5 "
        "--evidence evidence --evidence-mb 0.02 -o out.jsonl",
        writes=(
            "shown.mp4",
            "evidence",
            "out.jsonl",
        ),
    ),
    Run(
        "pcrun",
        "--bundle bottle.pcbundle --bundle bottle.pcbundle --source incoming --source good --webhook "
        "{server}/all --webhook-all --metrics 0 --serve 0",
        says=(r"http://127\.0\.0\.1:\d+",),
    ),
    Run(
        "pcrun",
        "--bundle bottle.pcbundle --images incoming --mqtt mqtt://127.0.0.1:9/line --mqtt-qos 0 "
        "--mqtt-retain",
        2,
        says=(r"mqtt://127\.0\.0\.1:9/line: 6 records are lost: the broker cannot be reached",),
    ),
    Run(
        "pcrun",
        "--bundle bottle.pcbundle --stdin-frames 96x64",
        says=('"source": "stdin", "frame": 1',),
    ),
    Run(
        "pcrun",
        "--bundle bottle.pcbundle --watch incoming --duration 0.2",
        says=("provider cpu",),
    ),
    Run(
        "pcrun",
        "--bundle bottle.pcbundle --camera 63 --prop EXPOSURE=-6 --stall-timeout 1 --max-frames 1",
        2,
        says=(r"Camera 63 cannot be opened\. Expected a connected camera",),
    ),
    Run(
        "pcrun",
        "--bundle bottle.pcbundle --images incoming --show",
        2,
        says=("There is no screen .*Leave --show out",),
    ),
    Run(
        "pcrun",
        "--bundle bottle.pcbundle --images incoming --engine line.engine",
        2,
        says=(NO_ENGINE,),
    ),
    Run(
        "pcrun selftest",
        "--bundle bottle.pcbundle --provider cpu --precision fp32 --threads 1 --no-profile --json",
        says=('"passed": true',),
    ),
    Run(
        "pcrun selftest",
        "--bundle bottle.pcbundle --engine line.engine",
        2,
        says=(NO_ENGINE,),
    ),
    Run(
        "pcrun doctor",
        "--bundle bottle.pcbundle --json",
        says=('"topic": "bundle"',),
    ),
    Run(
        "pcrun warmup",
        "--bundle bottle.pcbundle --provider cpu --precision fp32 --threads 1 --search hnsw --ef 4 "
        "--no-profile --json",
        says=(
            '"search": "hnsw"',
            r'"first_ms": [\d.]+',
        ),
    ),
    Run(
        "pcrun warmup",
        "--bundle bottle.pcbundle --engine line.engine",
        2,
        says=(NO_ENGINE,),
    ),
    Run(
        "pcrun compile",
        "--bundle bottle.pcbundle --precision fp16 -o line.engine --allow-flips --json",
        2,
        says=(r"tensorrt cannot be imported",),
    ),
    Run(
        "pcrun tune",
        "--bundle bottle.pcbundle --provider cpu --precision fp32 --threads 1 --images incoming "
        "--frames 6 --budget-ms 0.000001 --json",
        1,
        says=(
            '"budget_met": false',
            '"content": "6 images"',
            "the budget is 1e-06 ms",
        ),
    ),
    Run(
        "pcrun bench",
        "--bundle bottle.pcbundle --provider cpu --precision fp32 --threads 1 --exactness none "
        "--search hnsw --ef 4 --no-profile --images incoming --scenario server --scenario camera "
        "--duration 0.2 --queries 5 --bound-ms 40 --fps 50 --starts 1 -o out/bench.json --json",
        says=(
            '"cold_start_s"',
            '"fps": 50',
            '"bound_ms": 40',
        ),
        writes=("out/bench.json",),
    ),
    Run(
        "pcrun bench",
        "--bundle bottle.pcbundle --video line.mp4 --engine line.engine",
        2,
        says=(NO_ENGINE,),
    ),
)

PCBENCH = (
    Run(
        "pcbench build",
        "parts/bottle --name part -o out/build.json -- --backbone students/edge-s.onnx --image-size "
        "64x96 --threads 1 --calibration none --no-evaluate --no-tune",
        writes=("out/build.json",),
    ),
    Run(
        "pcbench search",
        "--bundle bottle.pcbundle --normal good --defective bad --max-images 6 --cold-start --name "
        "part -o out/s.json",
        says=("start",),
        writes=("out/s.json",),
    ),
    Run(
        "pcbench search",
        "--bundle bottle.pcbundle --normal @good.txt --max-images 6 --no-cold-start --name part -o "
        "out/s.json",
        writes=("out/s.json",),
    ),
    Run(
        "pcbench embedder",
        "--bundle bottle.pcbundle good --provider cpu --threads 1 --max-images 6 --name part -o "
        "out/embedder.json",
        writes=("out/embedder.json",),
    ),
    Run(
        "pcbench coreset",
        "--rows 400 --dim 8 --picks 12 --plain-picks 6 --seed 1 --threads 1 --repeats 1 --name rows "
        "-o out/c.json",
        says=("12 of 400",),
        writes=("out/c.json",),
    ),
    Run(
        "pcbench coreset",
        "--embeddings rows.npy --repeats 1 --name rows -o out/c.json",
        says=("5 of 500",),
        writes=("out/c.json",),
    ),
    Run(
        "pcbench soak",
        "--bundle bottle.pcbundle --video line.mp4 --minutes 0.01 --fps 50 --all-normal --name line "
        "-o out/soak.json",
        says=(r"frames = \d+ scored",),
        writes=("out/soak.json",),
    ),
    Run(
        "pcbench latency",
        "--bundle bottle.pcbundle --provider cpu --threads 1 --precision bundle --exactness none "
        "--batch 2 --images @good.txt --defective bad --profile --duration 0 --queries 5 --runs 1 "
        "--timeout 600 -o out/cells",
        says=("1 measured, 0 kept",),
        writes=("out/cells",),
    ),
    Run(
        "pcbench report",
        "results/old --title Tiles -o out/report.md",
        says=("16 measurements",),
        writes=("out/report.md",),
    ),
    Run(
        "pcbench compare",
        "results/old results/new --fail-above 5 --json",
        says=('"failed": false',),
    ),
    Run(
        "pcbench readme",
        "--readme page.md --results figures --check",
        1,
        says=("page.md: out of date",),
    ),
    Run(
        "pcbench peers",
        "--bundle bottle.pcbundle --peer onnxruntime --provider cpu --threads 1 --weights weights.pth "
        "--rounds 2 --max-images 6 --name part -o out/peers.json good",
        says=("one ONNX graph",),
        writes=("out/peers.json",),
    ),
)

RUNS = (*PCEXPORT, *PCRUN, *PCBENCH)
TRACED, STUDENT = PCEXPORT[:2]
