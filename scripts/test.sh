#!/usr/bin/env bash
# All checks: formatting, types, tests. From anywhere:
#
#   bash scripts/test.sh                  # two test processes; the tests that need Slurm are skipped where there is none
#   bash scripts/test.sh -k hest -n 0     # options go to pytest: here one process, which --pdb needs
#   bash scripts/test.sh --with-slurm     # as root on Debian: also installs Slurm where it is missing, makes a cluster of
#                                         # two nodes on this machine for the tests, and takes it down at the end
#
# Makes the virtual environment first (.venv, or $VENV; made with $PYTHON where that is set). --with-slurm comes first; it
# uses a cluster that is up already, and leaves that one up.
#
# Exit codes: 0 all passed; 1 a check failed (pytest's own codes pass through); 2 no usable Python, or wrong use.
set -euo pipefail
# shellcheck disable=SC2034
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/venv.sh
source scripts/lib/venv.sh
# shellcheck source=scripts/lib/pytest_twice.sh
source scripts/lib/pytest_twice.sh

# start_cluster: bring the test cluster up until this script ends. A machine that cannot run it is told, and goes on:
# the tests then skip with that reason. A cluster that should have come up and did not is an error.
start_cluster() {
    local code=0
    bash scripts/slurm_test_cluster.sh status >/dev/null 2>&1 && return
    trap 'bash scripts/slurm_test_cluster.sh down' EXIT
    bash scripts/slurm_test_cluster.sh up || code=$?
    ((code == 0 || code == 3)) || exit "$code"
}

with_slurm=
case ${1:-} in
-h | --help)
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
    exit
    ;;
--with-slurm)
    with_slurm=1
    shift
    ;;
esac
venv=$(venv_folder)
make_venv "$venv" requirements-test.txt '.[test]' "${PYTHON:-}"

say "ruff"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
say "mypy"
"$venv/bin/mypy"
if [[ $with_slurm ]]; then
    say "Slurm"
    start_cluster
fi
say "pytest"
if [[ $with_slurm ]]; then
    "$venv/bin/python" -m pytest -n 2 --ignore=tests/slurm "$@" # tests/conftest.py distributes the tests
    # Alone, and twice: Slurm's own time limits do not hold on a machine that is busy with other tests.
    say "pytest: Slurm"
    pytest_twice "$venv/bin/python" tests/slurm
else
    "$venv/bin/python" -m pytest -n 2 "$@"
fi
