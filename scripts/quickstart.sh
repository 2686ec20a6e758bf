#!/usr/bin/env bash
# From a fresh clone to a table: environment, tiles, pretraining of a tiny MVHybrid, HEST evaluation. See --help.
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/venv.sh
source scripts/lib/venv.sh

usage() {
    cat <<'HELP'
usage: bash scripts/quickstart.sh [options]

Makes a virtual environment, installs, pretrains a tiny MVHybrid on CPU (or the GPU there is), and evaluates it beside
its own random initialisation and colour statistics. Without options it takes real H&E tiles of a small CC0 slide and a
task whose expression is SIMULATED: that shows that everything works, not how good the model is.

options:
  --tiles DIR        pretrain on this folder of PNG/JPEG/TIFF tiles (any depth); needs --bench
  --bench DIR        evaluate on tasks in the hest-bench layout, DIR/<task>/{patches,adata,splits}; needs --tiles
  --tasks NAME ...   tasks of --bench (default: every folder in it that has splits)
  --steps N          pretraining steps (default 60: about three minutes on two cores)
  --out DIR          output (default quickstart_output, with --bench quickstart_output/real)
  --python PY        Python 3.11 to 3.13 to make the environment with
  --help             this text

environment: VENV   the virtual environment (default .venv)

examples:
  bash scripts/quickstart.sh
  bash scripts/quickstart.sh --tiles tiles --bench hest-bench --tasks IDC PRAD --steps 400 --out quickstart_output/idc

Run again, it goes on where it stopped. Exit codes: 0 done, 2 something given is wrong, others from the step that failed.
HELP
}

steps=60 out='' tiles='' bench='' python=''
tasks=()
while (($#)); do
    option=$1
    shift
    case $option in
        --help | -h) usage; exit 0 ;;
        --tiles | --bench | --tasks | --steps | --out | --python)
            [[ $# -gt 0 && $1 != --* ]] || fail "$option needs a value; see --help" ;;
        *) fail "unknown option $option; see --help" ;;
    esac
    case $option in
        --tiles) tiles=$(absolute "$1"); shift ;;
        --bench) bench=$(absolute "$1"); shift ;;
        --steps) steps=$1; shift ;;
        --out) out=$(absolute "$1"); shift ;;
        --python) python=$1; shift ;;
        --tasks) while [[ $# -gt 0 && $1 != --* ]]; do tasks+=("$1"); shift; done ;;
    esac
done

[[ $steps =~ ^[1-9][0-9]*$ ]] || fail "--steps $steps: it must be a whole number, 1 or more"
if [[ -n $tiles || -n $bench ]]; then
    [[ -n $tiles && -n $bench ]] || fail "--tiles and --bench go together: pretraining tiles, and tasks to evaluate on"
    [[ -d $tiles ]] || fail "--tiles $tiles: no such folder"
    [[ -d $bench ]] || fail "--bench $bench: no such folder"
    if ((${#tasks[@]} == 0)); then
        for folder in "$bench"/*/splits; do
            [[ -d $folder ]] && tasks+=("$(basename "$(dirname "$folder")")")
        done
        ((${#tasks[@]})) || fail "--bench $bench: no folder in it has splits/; give the folder that holds the tasks"
    fi
    real=yes
    out=${out:-quickstart_output/real}
else
    ((${#tasks[@]} == 0)) || fail "--tasks needs --bench and --tiles"
    real=no
    out=${out:-quickstart_output}
fi


started=$SECONDS
venv=$(venv_folder)
make_venv "$venv" requirements.txt . "$python"
python="$venv/bin/python"

if [[ $real == no ]]; then
    say "Sample data (real tiles, SIMULATED expression)"
    "$python" scripts/sample_data.py "$out/sample"
    tiles="$out/sample/tiles" bench="$out/sample/bench" tasks=(SIMULATED_CMU1)
fi

run="$out/mvhybrid_${steps}_steps"
say "Pretraining: $run ($steps steps)"
"$python" -m dinov2.train --config-file configs/train/tiny_cpu.yaml --output-dir "$run" \
    "train.dataset_path=Folder:root=$tiles" "train.max_steps=$steps" "train.OFFICIAL_EPOCH_LENGTH=$(((steps + 19) / 20))" \
    optim.epochs=20

say "Evaluation: ${tasks[*]}"
"$python" -m eval.hest --checkpoint "$run" --encoder "random:$run" color-stats \
    --bench-root "$bench" --tasks "${tasks[@]}" --out "$out/results"

say "Done in $(((SECONDS - started + 59) / 60)) minutes: $out/results/results.csv, $run/teacher.safetensors"
if [[ $real == no ]]; then
    cat <<NEXT
The expression of SIMULATED_CMU1 is simulated from the stains and the structure of the tissue: the table shows that the
pipeline works, and says nothing about real gene expression. checkpoint is the pretrained model, random the same
architecture before training, color-stats twelve statistics of the colours.
NEXT
fi
cat <<NEXT

Next, on real data (TILES: folder of tiles; HEST_BENCH: folder of tasks in the hest-bench layout):

  # the same, with your data and more steps
  bash scripts/quickstart.sh --tiles TILES --bench HEST_BENCH --steps 400

  # the paper's MVHybrid (a GPU, or sbatch slurm/pretrain.sbatch), then its table
  $python -m dinov2.train --config-file configs/train/mvhybrid.yaml --output-dir runs/mvhybrid \\
      train.dataset_path=Folder:root=TILES
  $python -m eval.hest --checkpoint runs/mvhybrid --encoder random:runs/mvhybrid color-stats \\
      --bench-root HEST_BENCH --tasks IDC PRAD --out results/mvhybrid
NEXT
