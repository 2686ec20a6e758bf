#!/usr/bin/env bash
# All checks: formatting, types, tests. Options go to pytest: bash scripts/test.sh -k hest
# Makes the virtual environment first (.venv, or $VENV; made with $PYTHON where that is set).
set -euo pipefail
# shellcheck disable=SC2034
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/venv.sh
source scripts/lib/venv.sh

venv=$(venv_folder)
make_venv "$venv" requirements-test.txt '.[test]' "${PYTHON:-}"

say "ruff"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
say "mypy"
"$venv/bin/mypy"
say "pytest"
"$venv/bin/python" -m pytest "$@"
