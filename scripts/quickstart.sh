#!/usr/bin/env bash
# From a fresh clone to a table: environment, tiles, pretraining of a tiny MVHybrid, HEST evaluation. See --help.
set -euo pipefail
cd_from=$PWD
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
  --python PY        Python 3.11 or later to make the environment with
  --help             this text

environment: VENV   the virtual environment (default .venv)

examples:
  bash scripts/quickstart.sh
  bash scripts/quickstart.sh --tiles tiles --bench hest-bench --tasks IDC PRAD --steps 400 --out quickstart_output/idc

Run again, it goes on where it stopped. Exit codes: 0 done, 2 something given is wrong, others from the step that failed.
HELP
}

# absolute PATH: PATH as seen from where the script was called.
absolute() { case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$cd_from/$1" ;; esac; }

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
    out=${out:-$PWD/quickstart_output/real}
else
    ((${#tasks[@]} == 0)) || fail "--tasks needs --bench and --tiles"
    real=no
    out=${out:-$PWD/quickstart_output}
fi

venv=$(cd "$cd_from" && absolute "${VENV:-$PWD/.venv}")
